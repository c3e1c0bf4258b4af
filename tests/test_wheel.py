"""pip installs every module, page and recipe, under a name of its own, and a program that runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from laconic.builtin_recipes import builtin_files
from laconic.errors import DISTRIBUTION, install

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "laconic"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip(*words: object, cwd: Path) -> None:
    """Run pip, which has to end well."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    # What lies on the path of these tests is not installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-1000:] + ran.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy: a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, folder / "laconic", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip("wheel", "--no-deps", "--no-build-isolation", ".", "-w", "out", cwd=folder)
    (built,) = (folder / "out").glob("*.whl")
    return built


def test_it_holds_all_that_is_not_made_by_running(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert there == {path.relative_to(ROOT).as_posix() for path in sources}
    assert {path.relative_to(ROOT).as_posix() for path in builtin_files("study").values()} <= there


def test_it_is_called_otherwise_than_the_other_laconic(wheel: Path) -> None:
    assert PROJECT["name"] == DISTRIBUTION != "laconic"
    assert wheel.name.startswith(f"{DISTRIBUTION.replace('-', '_')}-{PROJECT['version']}-")


@pytest.mark.slow
def test_the_program_runs_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    # What it needs is taken from where the tests run.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}

    def said(*words: str) -> str:
        ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return ran.stdout

    place = said(str(python), "-c", "import laconic; print(laconic.__file__)")
    assert Path(place.strip()).is_relative_to(tmp_path / "venv")
    program = str(python.with_name("laconic"))
    assert said(program, "--version").startswith(f"laconic {PROJECT['version']} (python ")
    listed = json.loads(said(program, "run", "--list", "--json"))["recipes"]
    assert [line["name"] for line in listed] == list(builtin_files("recipe"))


def texts() -> Iterator[Path]:
    """Everything that people read or run."""
    for folder in ("laconic", "docs", "tests", "benchmarks", "findings", ".github", ".ci"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in TEXT)
    yield from (path for path in ROOT.iterdir() if path.suffix in TEXT or path.name == "Makefile")


TEXT = {".py", ".md", ".yaml", ".yml", ".html", ".sh", ".toml", ".txt", ".cff"}
OTHERS = ("pip install laconic", "laconic[", "pip install 'laconic[")
"""Commands that would make pip install the program of that name that others published."""


def test_nothing_tells_anyone_to_install_the_other_laconic() -> None:
    looked_at = list(texts())
    assert len(looked_at) > 300
    for path in looked_at:
        # What the formatter keeps together: the name and what follows it.
        text = path.read_text(encoding="utf-8").replace(DISTRIBUTION, "")
        found = [words for words in OTHERS if words in text and path != Path(__file__).resolve()]
        assert not found, (path, found)


def test_every_extra_that_a_message_names_is_one() -> None:
    assert install("onnx") == "pip install 'laconic-lm[onnx]'"
    extras = PROJECT["optional-dependencies"]
    assert {"demo", "gguf", "harness", "mlflow", "onnx", "openvino", "ray", "study", "train"} <= extras.keys()
