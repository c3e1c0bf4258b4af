"""The Makefile, the workflows and the pages agree on linters, versions of Python, the version, and the release."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((GITHUB / "workflows" / f"{name}.yml").read_text())


def commands(target: str) -> list[str]:
    """The commands of a target of the Makefile, without the folder of its environment."""
    (body,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin").removeprefix(".venv/bin/") for line in body.splitlines()]


def test_the_linters_before_a_commit_are_those_of_make_lint() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"] for hook in local["hooks"]]
    assert len(hooks) == 4
    assert hooks == commands("lint")


def test_what_a_push_runs_is_what_a_developer_runs() -> None:
    jobs = workflow("tests")["jobs"]
    assert [step["run"] for step in jobs["lint"]["steps"] if "run" in step] == ["make lint"]
    tests = ["make test PYTHON=python", "make test-slow PYTHON=python"]
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == tests
    assert [step["run"] for step in jobs["coverage"]["steps"] if "run" in step] == ["make coverage PYTHON=python"]
    assert {"make lint", "make test", "make test-slow"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    tested = workflow("tests")["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    prefix = "Programming Language :: Python :: 3."
    named = [line.removeprefix(prefix[:-2]) for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert tested == named == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_a_release_needs_no_secret() -> None:
    for file in (GITHUB / "workflows").iterdir():
        assert "secrets." not in file.read_text(), file
        assert workflow(file.stem)["permissions"] == {"contents": "read"}, file
    publish = workflow("release")["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"] == "pypi"
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")


def test_issue_forms_are_forms() -> None:
    forms = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").iterdir() if path.name != "config.yml")
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids) > 0
        assert all(part["type"] in ("input", "textarea") and part["attributes"]["label"] for part in form["body"])


def test_it_is_cited_as_what_it_is() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_changes_begin_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if headings[0] == "Unreleased":
        headings = headings[1:]
    assert headings[0] == PROJECT["version"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", heading) for heading in headings)
