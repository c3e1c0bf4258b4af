"""A class that others define has another hash after every edit of what it is computed by, and none without source."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from laconic.fingerprint import hash_class, hash_classes
from laconic.methods import Svd
from tests.fresh_python import run_fresh

METHOD = """
from dataclasses import dataclass
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import svd_components
{imports}
FACTOR = 2

@dataclass(frozen=True, kw_only=True)
class Own(TruncationMethod):
    name, paper, needs = "own", "none", frozenset()

    def components(self, weight, known):
        return svd_components(weight * scale() * FACTOR)
"""
SCALE = "def scale():\n    return 1\n"


@pytest.fixture(autouse=True)
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules may be imported from the test's folder, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("own", "beside"):
            del sys.modules[name]


def hash_of(folder: Path, module: str = "own") -> str | None:
    """The hash of the class as the files have it now."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own", "beside")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    return hash_class(importlib.import_module(module).Own)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def test_what_laconic_and_torch_define_is_in_every_key_already() -> None:
    assert hash_class(Svd) == hash_class(Tensor) == hash_class(int) == ""
    assert hash_classes([Svd, int]) == hash_classes([])


def test_an_edit_of_its_module_is_another_hash(tmp_path: Path) -> None:
    write(tmp_path / "own.py", METHOD.format(imports=SCALE))
    first = hash_of(tmp_path)
    assert first and first == hash_of(tmp_path)
    write(tmp_path / "own.py", METHOD.format(imports=SCALE).replace("FACTOR = 2", "FACTOR = 30"))
    assert hash_of(tmp_path) not in (first, None, "")


@pytest.mark.parametrize(
    ("files", "edited"),
    [
        ({"own.py": "from beside import scale", "beside.py": SCALE}, "beside.py"),
        ({"own.py": "import beside\nscale = beside.scale", "beside.py": SCALE}, "beside.py"),
        ({"own/__init__.py": "from own.inner import scale", "own/inner.py": SCALE}, "own/inner.py"),
    ],
)
def test_an_edit_of_what_it_imports_is_another_hash(tmp_path: Path, files: dict[str, str], edited: str) -> None:
    first_file, *_ = files
    for name, text in files.items():
        write(tmp_path / name, METHOD.format(imports=text) if name == first_file else text)
    first = hash_of(tmp_path)
    write(tmp_path / edited, SCALE.replace("1", "10"))
    assert hash_of(tmp_path) not in (first, None, "")


def said_by_sessions(*sessions: list[str]) -> list[str]:
    """The hash of `Own` in sessions whose cells have a source, as a notebook's, and no file."""
    run = f"""
import linecache, sys
from laconic.fingerprint import hash_class
for number, cells in enumerate({sessions!r}):
    here = vars(sys.modules["__main__"])
    for cell in cells:
        name = f"<cell {{number}} {{len(linecache.cache)}}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
        exec(compile(cell, name, "exec"), here)
    print(hash_class(here["Own"]))
"""
    return run_fresh(run).split()


def test_in_a_notebook_its_functions_and_what_they_refer_to_are_hashed() -> None:
    cell = METHOD.format(imports="")
    sessions = [
        [SCALE, cell],
        [SCALE.replace("1", "2"), cell],
        [SCALE, cell.replace("FACTOR = 2", "FACTOR = 3")],
        [SCALE, cell.replace("* FACTOR", "- FACTOR")],
        # A tensor's words do not tell all of its numbers.
        ["import torch", SCALE, cell.replace("= 2", "= torch.ones(5)")],
    ]
    *hashes, of_a_tensor = said_by_sessions(*sessions)
    assert len(set(hashes)) == 4 and {len(one) for one in hashes} == {32} and of_a_tensor == "None"
    assert said_by_sessions(sessions[0]) == hashes[:1]


def test_without_source_there_is_no_hash() -> None:
    names: dict[str, object] = {"__name__": "nowhere"}
    exec(METHOD.format(imports=SCALE), names)
    own = names["Own"]
    assert isinstance(own, type)
    assert hash_class(own) is None and hash_classes([Svd, own]) is None
