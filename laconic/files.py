"""Expand `~` in paths, write files atomically, hold locks, and say why a file cannot be written."""

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from laconic.errors import UserError, quote, reason_of

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The error codes of a disk, or of a quota, without space."""
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
"""The error codes of a folder in which no file can be made."""


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


def write_json(path: Path, value: object, *, flush: bool = False) -> None:
    """Write `value` as indented JSON; the file is replaced atomically.

    Args:
        path: the file, in a folder that exists.
        value: JSON values.
        flush: as for `replacing`.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path, flush=flush) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")


@contextmanager
def hold_lock(file: Path, busy: str) -> Iterator[None]:
    """Hold a lock within the block. The system releases it if the process is killed.

    Args:
        file: the file of the lock, in a folder that exists. It is deleted at the end.
        busy: the message if another process holds the lock: a sentence that names the remedy.

    Raises:
        UserError: another process holds the lock, or the file cannot be made.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with hold_lock(Path(folder) / "lock", "Another run is writing; wait for it."):
        ...         with hold_lock(Path(folder) / "lock", "Another run is writing; wait for it."):
        ...             pass
        Traceback (most recent call last):
        laconic.errors.UserError: Another run is writing; wait for it.
    """
    with ExitStack() as held:
        with report_unwritable(file):
            try:
                held.enter_context(FileLock(file, timeout=0))
            except Timeout as error:
                raise UserError(busy) from error
        # The file is deleted before the lock is released, so that no process deletes the lock of another.
        held.callback(file.unlink, missing_ok=True)
        yield


@contextmanager
def report_unwritable(file: Path) -> Iterator[None]:
    """A context in which a file or folder is written, with one sentence for an error.

    Args:
        file: the file or folder that the sentence names.

    Raises:
        UserError: it cannot be written, for example because the disk is full.

    Example:
        >>> with report_unwritable(Path("states.bin")):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        laconic.errors.UserError: 'states.bin' cannot be written: No space left on device; free some space, and run ...
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code, again = error_code(error), ", and run the same command again"
        remedy = "name another output"
        if code in FULL:
            remedy = f"free some space{again}"
        elif code in NOT_WRITABLE:
            remedy = f"make its folder writable{again}"
        raise UserError(f"'{file}' cannot be written: {system_reason(error)}; {remedy}.") from error


def store_json(file: Path, value: object) -> None:
    """Write JSON that a later run reads. Its folder is made, and the content survives a power failure.

    Args:
        file: the file.
        value: JSON values.

    Raises:
        UserError: the file cannot be written.
    """
    with report_unwritable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, value, flush=True)


def error_code(error: OSError | SafetensorError) -> int | None:
    """The error code of the operating system, as in `errno`; a `SafetensorError` has it only in its message.

    >>> error_code(SafetensorError("I/O error: No space left on device (os error 28)"))
    28
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def system_reason(error: Exception) -> str:
    """The reason of the operating system for an error, without the name of the file; else as `reason_of`.

    >>> system_reason(FileNotFoundError(2, "No such file or directory", "states.bin"))
    'No such file or directory'
    """
    return (error.strerror if isinstance(error, OSError) else None) or reason_of(error)
