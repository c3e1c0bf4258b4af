"""`import laconic`: what it imports, what its names are, and that transformers reads what laconic saved."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import laconic
from laconic.errors import DISTRIBUTION
from tests.fresh_python import run_fresh

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_names_are_there_and_no_others() -> None:
    assert {"UserError", "compress", "materialize"} <= set(dir(laconic))
    assert laconic.compress.__module__ == "laconic.api.compress"
    assert laconic.UserError is laconic.errors.UserError
    with pytest.raises(AttributeError, match="module 'laconic' has no attribute 'compres'"):
        _ = laconic.compres  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [
    "from laconic.compress import Narrow",
    "import laconic.compress.matrices",
    "from laconic.compress import *",
    "from laconic.api.compress import compress",
    "import laconic.compress.narrow, laconic.recipe",
])  # fmt: skip
def test_compress_is_the_function_whatever_was_imported_before(first: str) -> None:
    shown = "print(compress.__module__, laconic.compress is compress)"
    assert run_fresh(f"{first}\nimport laconic\nfrom laconic import compress\n{shown}") == "laconic.api.compress True"


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert laconic.__version__ == version(DISTRIBUTION)

    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", not_installed)
    assert laconic.__version__ == "0+source"


def test_modules_are_found_by_their_names() -> None:
    assert (
        run_fresh("import laconic\nprint(laconic.methods.Svd.name, laconic.errors.UserError.__name__)")
        == "svd UserError"
    )


def test_what_is_not_asked_for_is_not_imported() -> None:
    code = "import sys, laconic\nprint(*sorted({'scipy', 'matplotlib', 'sklearn', 'datasets'} & sys.modules.keys()))"
    assert run_fresh(code) == ""


@pytest.mark.parametrize("started", ["-m", "laconic", "-c"])
def test_a_process_that_is_not_the_program_can_load_what_was_saved(started: str, tmp_path: Path) -> None:
    # A package that imports laconic is imported itself while Python has only `-m` to tell of how it was started.
    package = tmp_path / "trains"
    package.mkdir()
    (package / "__init__.py").write_text("import laconic\n")
    check = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known\nprint('laconic' in known)\n"
    (package / "__main__.py").write_text(check)
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY)))
    how = {"-m": ["-m", "trains"], "laconic": ["-m", "trains", "laconic"], "-c": ["-c", f"import laconic\n{check}"]}
    ended = subprocess.run(
        [sys.executable, *how[started]],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        check=True,
    )
    assert ended.stdout.strip() == "True"
