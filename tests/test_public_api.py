"""Public names and signatures are frozen, and every package that is not public says that it is internal."""

import ast
from pathlib import Path

import pytest

import laconic
from tests.public_api import PACKAGES, PATH, text

PACKAGE = Path(laconic.__file__).parent
INTERNAL = sorted(
    file.parent.name for file in PACKAGE.glob("*/__init__.py") if f"laconic.{file.parent.name}" not in PACKAGES
)


def test_nothing_public_comes_or_goes_unnoticed() -> None:
    assert PATH.read_text(encoding="utf-8") == text(), "run python -m tests.public_api"


def test_every_public_function_has_an_example_and_says_what_its_arguments_are() -> None:
    functions = [name for name in laconic.__all__ if name[0].islower()]
    assert len(functions) == 8
    for name in functions:
        said = getattr(laconic, name).__doc__ or ""
        assert all(f"\n    {section}:\n" in said for section in ("Args", "Raises", "Example")), name


@pytest.mark.parametrize("name", INTERNAL)
def test_what_is_internal_says_so(name: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert "internal" in said.lower(), f"laconic/{name}/__init__.py"
