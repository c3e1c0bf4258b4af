"""Paths as users write them."""

from pathlib import Path

from laconic.errors import UserError, shown


def expanded(path: str | Path) -> Path:
    """`path` with a home folder in place of a `~` or `~name` at its beginning.

    Raises:
        UserError: it is the home of a user who is not known on this machine.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"The path {shown(str(path))} begins with the home of a user who is not known on this machine; "
            "write it from the root on."
        ) from error
