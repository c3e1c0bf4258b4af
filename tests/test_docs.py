"""The documentation says what the program does: reference pages, names in the drawing, keys, navigation, docstrings."""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import yaml

import laconic
from laconic.cli.main import status
from laconic.compress import SHRINKING
from laconic.errors import UserError
from laconic.evaluate import Conditions
from laconic.methods import METHODS, Rtn
from laconic.recipe import EvaluationConfig, Recipe, recipe_from
from laconic.recover import RECOVERING
from laconic.study import study_from
from laconic.testing import check_step
from tests.tiny_models import TINY_MODELS
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


DRAWN = re.findall(r'data-module="([\w.]+)"[^>]*>([\w.]+)<', (DOCS / "flow.svg").read_text())
"""The module and the name of each function in the drawing, from top to bottom."""


def test_names_in_the_drawing_exist() -> None:
    assert len(DRAWN) >= 8
    for module, name in DRAWN:
        thing = import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
        assert callable(thing), name


def implementations(module: str, name: str) -> Iterator[CodeType]:
    """The code of a function, or of a method in its class and all subclasses."""
    owner: Any = import_module(module)
    *kinds, function = name.split(".")
    owners = [owner]
    for kind in kinds:
        owners = [getattr(owner, kind)]
        # The list grows as it is read: subclasses of subclasses follow.
        for known in owners:
            owners.extend(known.__subclasses__())
    for owner in owners:
        if function in vars(owner):
            yield inspect.unwrap(vars(owner)[function]).__code__


def test_the_functions_in_the_drawing_are_called_in_its_order(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.txt").write_text("the cat is good\nthe dog is old\n" * 4)
    boxes = {code: place for place in DRAWN for code in implementations(*place)}
    # The check of the structure replaces layers without weights, so that the last call of each function counts.
    last: dict[tuple[str, str], int] = {}
    calls = count()

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in boxes:
            last[boxes[frame.f_code]] = next(calls)

    words = ["--method", "drone:multiple=1", "--keep", "0.5", "--data", str(tmp_path / "texts.txt")]
    sys.setprofile(record)
    try:
        assert status(["compress", str(tiny_model), *words, "-o", str(tmp_path / "small")]) == 0
    finally:
        sys.setprofile(None)
    assert sorted(last, key=lambda place: last[place]) == DRAWN


def test_names_of_packages_in_the_page_on_the_inside_exist() -> None:
    named = set(re.findall(r"`(laconic\.\w+)`", (DOCS / "inside.md").read_text()))
    packages = {f"laconic.{path.parent.name}" for path in (ROOT / "laconic").glob("*/__init__.py")}
    assert named == packages


def test_the_step_on_the_page_of_plug_ins_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"^```python\n(.*?)^```", (DOCS / "extend.md").read_text(), flags=re.M | re.S)
    (tmp_path / "page_step.py").write_text(next(text for text in code if "(Step)" in text))
    monkeypatch.syspath_prepend(tmp_path)
    step = import_module("page_step").ClipWeights(deviations=1.5)
    check_step(step, TINY_MODELS["bert-classifier"]())
    model = TINY_MODELS["bert-classifier"]()
    result = laconic.compress(model, [step, Rtn(bits=4)])
    assert result.bytes < 0.5 * result.dense_bytes


def test_the_page_of_plug_ins_names_all_that_the_example_imports() -> None:
    page = (DOCS / "extend.md").read_text()
    table = page.split("## What a plug-in may import")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w.]+)`", table))
    for path in (ROOT / "examples" / "plugin").rglob("*.py"):
        imported = re.findall(r"^from (laconic(?:\.[\w.]+)?) import ", path.read_text(), re.M)
        assert set(imported) <= named, path.name


def test_the_table_of_methods_names_their_files_and_functions() -> None:
    table = (DOCS / "inside.md").read_text().split("## Where the mathematics of a method is")[1].split("\n## ")[0]
    rows = [
        [re.findall(r"`([^`]+)`", cell) for cell in row]
        for row in re.findall(r"^\| (`.*) \| (.*) \| (.*) \|$", table, re.M)
    ]
    assert {name for names, _, _ in rows for name in names} == {method.name for method in METHODS}
    for _, files, functions in rows:
        sources = [(ROOT / "laconic" / "methods" / file).read_text() for file in files]
        for function in functions:
            module, _, name = function.partition(".")
            assert callable(getattr(import_module(f"laconic.numerics.{module}"), name)), function
        assert not functions or all("numerics" in source or "prune.base" in source for source in sources), files


def test_the_table_of_steps_names_their_files_and_functions() -> None:
    table = (DOCS / "inside.md").read_text().split("## Where the mathematics of a step is")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*) \| (.*) \| (.*) \|$", table, re.M)
    steps = {step.name for step in (*SHRINKING, *RECOVERING)}
    assert rows
    for step, files, functions in rows:
        assert set(re.findall(r"`([^`]+)`", step)) <= steps
        assert all((ROOT / "laconic" / file).is_file() for file in re.findall(r"`([^`]+)`", files)), files
        for module, name in re.findall(r"`(\w+)\.(\w+)`", functions):
            assert callable(getattr(import_module(f"laconic.numerics.{module}"), name)), name


def test_every_key_of_a_recipe_is_described() -> None:
    page = (DOCS / "reference" / "recipes.md").read_text()
    keys = [field.name for kind in (Recipe, EvaluationConfig) for field in fields(kind)]
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
    # `__version__` is text, which a sentence of the page describes.
    assert "`laconic.__version__`" in page
    assert sorted([*shown, "__version__"]) == sorted(laconic.__all__)


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


def test_every_public_name_has_a_docstring() -> None:
    pytest.importorskip("griffe")
    from tools.docstrings import missing

    assert missing() == []


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


def test_inherited_fields_are_described(tmp_path: Path) -> None:
    griffe = pytest.importorskip("griffe")
    from tools.griffe_sections import Sections

    (tmp_path / "one.py").write_text(
        "class A:\n    '''A.\n\n    Args:\n        a: one.\n        shape: (out, in).\n    '''\n    a: int\n"
        "    @property\n    def shape(self): ...\n"
        "class B(A):\n    '''B.'''\n"
        "class C(B):\n    '''C.\n\n    Args:\n        c: two.\n    '''\n    c: int\n"
    )
    module = griffe.load("one", search_paths=[tmp_path], extensions=griffe.load_extensions(Sections))
    assert module["C"].docstring.value == "C.\n\nArgs:\n    a: one.\n    c: two."


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    pytest.importorskip("griffe")
    from tools.site_hooks import mathml

    assert mathml(r"\tfrac{1}{2} x", "math", "math", {}, None).startswith('<div class="math"><math ')


def test_a_push_builds_the_site() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make docs" in lines
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())["jobs"]
    assert "make docs PYTHON=python" in [step.get("run") for step in jobs["build"]["steps"]]
    assert "github.ref == 'refs/heads/main'" in jobs["publish"]["if"]
