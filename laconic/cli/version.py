"""`laconic --version`: of laconic, and of what its figures depend on."""

from importlib.metadata import PackageNotFoundError, version

import typer

from laconic.errors import DISTRIBUTION


def show_version(wanted: bool) -> None:
    """Print the versions and end the program, where that is `wanted`."""
    if not wanted:
        return
    from laconic.evaluate.kept import versions

    beside = ", ".join(f"{name} {of}" for name, of in versions().items())
    typer.echo(f"laconic {_own()} ({beside})")
    raise typer.Exit


def _own() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        # The source lies on the path of Python, and nothing was installed.
        return "from source"
