"""Public names and signatures are frozen, and every package that is not public says that it is internal."""

import ast
import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import laconic
from tests.public_api import PACKAGES, PATH, text

PACKAGE = Path(laconic.__file__).parent
INTERNAL = sorted(
    file.parent.name for file in PACKAGE.glob("*/__init__.py") if f"laconic.{file.parent.name}" not in PACKAGES
)
DESCRIBED = [
    f"{package}.{name}"
    for package in PACKAGES
    for name in sorted(import_module(package).__all__)
    if inspect.isclass(value := getattr(import_module(package), name)) or inspect.isfunction(value)
]
NOT_GIVEN = {"self", "args", "kwargs"}


def test_nothing_public_comes_or_goes_unnoticed() -> None:
    assert PATH.read_text(encoding="utf-8") == text(), "run python -m tests.public_api"


def test_every_public_function_has_an_example_and_says_what_its_arguments_are() -> None:
    functions = [name for name in laconic.__all__ if name[0].islower()]
    assert len(functions) == 9
    for name in functions:
        said = getattr(laconic, name).__doc__ or ""
        assert all(f"\n    {section}:\n" in said for section in ("Args", "Raises", "Example")), name


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_public_class_and_function_has_an_example_and_describes_its_parameters(name: str) -> None:
    package, _, member = name.rpartition(".")
    value = getattr(import_module(package), member)
    docstring = inspect.cleandoc(value.__doc__ or "")
    assert doctest.DocTestParser().get_examples(docstring), f"{name} has no example"
    # A metaclass that checks arguments hides those of the class.
    own = value.__init__ if inspect.isclass(value) and value.__init__ is not object.__init__ else value
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", docstring, re.MULTILINE)
    described = set(re.findall(r"^    \**(\w+): ", section[1] if section else "", re.MULTILINE))
    missing = inspect.signature(own).parameters.keys() - NOT_GIVEN - described
    assert not missing, f"{name} does not describe {', '.join(sorted(missing))}"


@pytest.mark.parametrize("name", INTERNAL)
def test_what_is_internal_says_so(name: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert "internal" in said.lower(), f"laconic/{name}/__init__.py"
