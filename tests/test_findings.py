"""Every script under findings/ has the form that findings/README.md gives; none is run here."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = ROOT / "findings"
ENVIRONMENT = FINDINGS / "environment.sh"
SCRIPTS = sorted(path for path in FINDINGS.glob("*.sh") if path != ENVIRONMENT)
TABLE = re.findall(r"^\| \[([\w-]+)\]\(([\w.-]+)\) \|", (FINDINGS / "README.md").read_text(), re.MULTILINE)
SOURCED = re.compile(r'^source "\$\(dirname "\$0"\)/environment\.sh" (.+)$', re.MULTILINE)

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def test_each_is_a_line_of_the_table() -> None:
    assert SCRIPTS
    assert sorted(TABLE) == [(path.stem, path.name) for path in SCRIPTS]
    assert {path.name for path in FINDINGS.iterdir()} == {"README.md", ENVIRONMENT.name, *(one.name for one in SCRIPTS)}


@every_script
def test_it_has_the_form(script: Path) -> None:
    text = script.read_text()
    first, *comment = re.match(r"(?:#.*\n)+", text)[0].splitlines()  # type: ignore[index]
    assert first == "#!/usr/bin/env bash"
    (pinned,) = SOURCED.findall(text)
    pins = dict(pin.split("==") for pin in pinned.split())
    assert pins and all(re.fullmatch(r"\d+(\.\w+)+", version) for version in pins.values())
    package, version = re.match(r"# ([\w.-]+) (\d[\w.]*\w)", comment[0]).groups()  # type: ignore[union-attr]
    assert pins.get(package) == version, "it begins with the package that it is of"
    assert re.match(r"# Seen \(\d{4}-\d{2}-\d{2}\): \S", comment[-1])
    code = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    assert "laconic" not in code
    assert re.search(r"^\s*assert |^test ", code, re.MULTILINE), "it fails where the behaviour changes"
    assert "print(" in code


@every_script
def test_what_is_drawn_has_a_seed(script: Path) -> None:
    text = script.read_text()
    assert "manual_seed(" in text or not re.search(r"\brandn?\(|randint\(|from_config\(", text)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize("script", [ENVIRONMENT, *SCRIPTS], ids=lambda path: path.stem)
def test_it_is_a_script(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_the_environment_is_its_own_and_leaves_nothing() -> None:
    lines = set(ENVIRONMENT.read_text().splitlines())
    assert {"set -euo pipefail", "unset PYTHONPATH"} <= lines
    assert {"folder=$(mktemp -d)", "trap 'rm -rf \"$folder\"' EXIT"} <= lines


def test_none_is_part_of_the_tests() -> None:
    for path in (ROOT / "Makefile", *(ROOT / ".ci").iterdir(), *(ROOT / ".github").rglob("*.yml")):
        assert "findings/" not in path.read_text(), path
