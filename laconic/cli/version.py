"""`laconic --version`: of laconic, and of what its figures depend on."""

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import typer

from laconic.errors import DISTRIBUTION


def show_version(wanted: bool) -> None:
    """Print the versions and end the program, where that is `wanted`."""
    if not wanted:
        return
    beside = f"python {platform.python_version()}, torch {_of('torch')}, transformers {_of('transformers')}"
    typer.echo(f"laconic {_own()} ({beside})")
    raise typer.Exit


def _of(package: str) -> str:
    """The version of an installed package, which is not imported for it, as that takes seconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return import_module(package).__version__


def _own() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        # The source lies on the path of Python, and nothing was installed.
        return "from source"
