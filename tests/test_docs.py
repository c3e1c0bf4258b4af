"""The documentation says what the program does: reference pages, names in the drawing, keys, navigation, docstrings."""

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import laconic
from laconic.errors import UserError
from laconic.evaluate import Conditions
from laconic.recipe import Evaluation, Recipe, recipe_from
from laconic.study import study_from
from tools.reference import DOCS, PAGES

ROOT = Path(__file__).parents[1]
RECIPES = [
    pytest.param(text, id=f"{path.relative_to(DOCS)}-{number}")
    for path in sorted(DOCS.rglob("*.md"))
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", path.read_text(), flags=re.M | re.S))
]


@pytest.mark.parametrize("name", PAGES)
def test_reference_pages_are_those_of_the_program(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run `python -m tools.reference`"


def test_names_in_the_drawing_exist() -> None:
    found = re.findall(r'data-module="([\w.]+)"[^>]*>([\w.]+)<', (DOCS / "flow.svg").read_text())
    assert len(found) >= 8
    for module, name in found:
        thing = import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
        assert callable(thing), name


def test_names_of_packages_in_the_page_on_the_inside_exist() -> None:
    named = set(re.findall(r"`(laconic\.\w+)`", (DOCS / "inside.md").read_text()))
    packages = {f"laconic.{path.parent.name}" for path in (ROOT / "laconic").glob("*/__init__.py")}
    assert named == packages - {"laconic.testing"}


def test_every_key_of_a_recipe_is_described() -> None:
    page = (DOCS / "reference" / "recipes.md").read_text()
    keys = [field.name for kind in (Recipe, Evaluation) for field in fields(kind)]
    assert all(f"| `{key}` |" in page for key in keys)
    assert all(f"{field.name}:" in page for field in fields(Conditions))


@pytest.mark.parametrize("text", RECIPES)
def test_every_recipe_and_study_on_a_page_is_one(text: str, tmp_path: Path) -> None:
    spelled = yaml.safe_load(text)
    if "axes" in spelled:
        study_from(spelled, tmp_path)
    elif "steps" in spelled:
        recipe_from({"model": "MODEL", **spelled})
    else:
        raise UserError(f"A block of YAML that is neither a recipe nor a study: {text}")


def test_the_page_of_the_package_has_each_of_its_names() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    shown = re.findall(r"^::: laconic\.[\w.]+\.(\w+)$", page, re.MULTILINE) + re.findall(r"members: \[(.*)\]", page)[
        0
    ].split(", ")
    assert sorted(shown) == sorted(laconic.__all__)


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert sorted(pages) == sorted(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))


def test_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 85


def test_the_reader_asks_no_other_host() -> None:
    spelled = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert spelled["theme"]["font"] is False
    # The theme would ask GitHub for the stars of a repository that is named here.
    assert "repo_url" not in spelled


def test_missing_docstrings_are_found(tmp_path: Path) -> None:
    pytest.importorskip("griffe")
    from tools.docstrings import missing

    package = tmp_path / "laconic"
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""A package."""\nfrom laconic.one import A, bare, told\n__all__ = ["A", "bare", "told"]\n'
    )
    (package / "one.py").write_text(
        "class Base:\n    def kept(self):\n        '''Said here.'''\n"
        "class A(Base):\n    '''A class.'''\n    def kept(self): ...\n    def lost(self): ...\n"
        "    def _own(self): ...\n"
        "def bare(): ...\ndef told():\n    '''A function.'''\n"
    )
    assert missing(tmp_path) == ["laconic.one.A.lost", "laconic.one.bare"]


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    pytest.importorskip("griffe")
    from tools.site_hooks import mathml

    assert mathml(r"\tfrac{1}{2} x", "math", "math", {}, None).startswith('<div class="math"><math ')


def test_a_push_builds_the_site() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines.index("make docs") > lines.index("make test")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())["jobs"]
    assert "make docs PYTHON=python" in [step.get("run") for step in jobs["build"]["steps"]]
    assert "github.ref == 'refs/heads/main'" in jobs["publish"]["if"]
