"""Expand `~` in paths, and write files atomically."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laconic.errors import UserError, quote


def expand_user(path: str | Path) -> Path:
    """`path` with a home folder in place of a `~` or `~name` at its beginning.

    Raises:
        UserError: `name` is not a user of this machine.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"The path {quote(str(path))} begins with the home of a user who is not known on this machine; "
            "write it from the root on."
        ) from error


@contextmanager
def replacing(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` once the block ends.

    Readers see the old file or the new one, never a part. If the block fails, `path` stays as it was.

    Args:
        path: the file to write, in a folder that exists.
        flush: wait until the content is on the disk, so that it survives a power failure too.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as partial:
        ...         _ = partial.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
        if flush:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON; the file is replaced atomically.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")
