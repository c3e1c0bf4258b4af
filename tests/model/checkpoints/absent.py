"""A library that is not installed, to see what is said then."""

from importlib import metadata

import pytest

from laconic.model.checkpoints import checkpoint


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let laconic find every distribution that is installed, except `package`. Modules can still be imported."""

    def version(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr(checkpoint, "version", version)
