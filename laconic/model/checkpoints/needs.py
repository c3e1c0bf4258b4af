"""Optional libraries that a kind of checkpoint is read by: there in a version that will do, or one sentence."""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from laconic.errors import UserError, install


def need(package: str, what: str, *, extra: str | None = None, least: str | None = None) -> None:
    """Raise UserError where `package` is not installed, or older than `least`.

    Args:
        package: the name that pip knows it by.
        what: what needs it; the beginning of the sentence.
        extra: of laconic, which brings it.
    """
    ask = install(extra) if extra else f"pip install '{package}{f'>={least}' if least else ''}'"
    try:
        there = version(package)
    except PackageNotFoundError as error:
        raise UserError(f"{what} needs {package}, which is not installed: {ask}.") from error
    if least is not None and Version(there) < Version(least):
        raise UserError(f"{what} needs {package} {least} or later, and {there} is installed: {ask}.")
