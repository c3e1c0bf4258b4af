"""Where measurements are kept."""

from pathlib import Path

import pytest

from laconic.cache import cache_folder


def test_the_nearest_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LACONIC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "laconic"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "laconic"
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert not (tmp_path / "own").exists()
