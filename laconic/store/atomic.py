"""A folder that appears whole or not at all: written under another name beside its place, flushed, and renamed."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from laconic.errors import UserError


def check_output(folder: Path) -> Path:
    """`folder` with the user's home in place of ~, once it is known that a new folder can be made there.

    Raises:
        UserError: something is there already, or its parent is no folder that can be written to.
    """
    folder = Path(folder).expanduser()
    if folder.exists() or folder.is_symlink():
        raise UserError(f"The output '{folder}' exists already; name a new folder or remove it first.")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"The output '{folder}' cannot be made: '{parent}' is not a folder that you may write to.")
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write in; it is `folder` once the block ends, and gone if the block fails or is interrupted.

    Raises:
        UserError: as `check_output`, or another run is writing it, or the disk is full or refuses.
    """
    folder = check_output(folder).absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder):
            partial = folder.parent / f"{_prefix(folder)}{secrets.token_hex(4)}"
            try:
                partial.mkdir()
                yield partial
                _flush(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _refused(folder, error) from error


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; while it is held, whatever partial folders there are were left by killed runs."""
    place = folder.parent / f".{folder.name}.lock"
    try:
        with FileLock(place, timeout=0):
            try:
                for stale in folder.parent.glob(f"{escape(_prefix(folder))}*"):
                    shutil.rmtree(stale, ignore_errors=True)
                yield
            finally:
                place.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"Another run is writing '{folder}'; wait for it, or name another folder.") from error


def _prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def _flush(folder: Path) -> None:
    """Have the operating system write everything in `folder` to disk, so that the rename never outruns the content."""
    for path in (*(file for file in folder.rglob("*") if file.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refused(folder: Path, error: OSError | SafetensorError) -> UserError:
    # safetensors reports the operating system's error in words only.
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
        return UserError(f"The disk is full: '{folder}' was not written; free some space or name a folder elsewhere.")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UserError(f"The folder '{folder}' cannot be written: {reason}; name a folder that can.")
