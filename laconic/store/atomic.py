"""Atomic output folders: written under a temporary name beside the final path, flushed to disk, then renamed."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from laconic.errors import UserError
from laconic.files import expand_user


def check_output(folder: Path, *models: str, exist_ok: bool = False) -> Path:
    """Check that an output folder can be created.

    Args:
        folder: the path of the output.
        models: folders or hub names of the models that the output is made from. The output must not lie in one of these
            folders.
        exist_ok: accept an existing folder, to which the output is added.

    Returns:
        `folder` with `~` replaced by the home folder.

    Raises:
        UserError: the path exists already, lies in the folder of a model, or cannot be created.

    Example:
        >>> check_output(Path("new"))
        PosixPath('new')
        >>> Path("new").mkdir()
        >>> check_output(Path("new"))
        Traceback (most recent call last):
        laconic.errors.UserError: The output 'new' exists already; name a new folder or remove it first.
    """
    folder = _decode(folder)
    _check_outside(folder, models)
    if os.path.lexists(folder):
        if not exist_ok:
            raise UserError(f"The output '{folder}' exists already; name a new folder or remove it first.")
        if not folder.is_dir():
            raise UserError(f"The output '{folder}' is no folder; name a folder, which may be new.")
    _check_writable(folder)
    return folder


def _decode(folder: Path) -> Path:
    """Expand `~` in `folder`, after checking that safetensors can open the name: it must be UTF-8 without NUL."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The output {str(folder)!a} is not named in UTF-8; give it a name in UTF-8.") from error
    if "\0" in str(folder):
        raise UserError(f"The output {str(folder)!a} has the character NUL in its name; leave it out.")
    return expand_user(folder)


def _check_outside(folder: Path, models: Iterable[str]) -> None:
    """Raise UserError if `folder` lies in the folder of a model, whose files would be loaded as parts of the model."""
    path = os.path.realpath(folder)
    for model in models:
        # Hub names and missing folders are checked when the model is loaded.
        if not model.strip() or not os.path.isdir(expand_user(model)):
            continue
        model_path = os.path.realpath(expand_user(model))
        if os.path.commonpath((model_path, path)) == model_path:
            where = "is the folder of the model" if path == model_path else "lies in the folder of the model"
            raise UserError(f"The output '{folder}' {where} '{model}'; name a folder outside of it.")


def _check_writable(folder: Path) -> None:
    """Raise UserError unless `folder` can be created; the check creates a trial folder beside it and removes it."""
    parent, missing = folder.absolute(), [_partial_prefix(folder) + secrets.token_hex(4)]
    while not os.path.lexists(parent):
        missing.append(parent.name)
        parent = parent.parent
    problem = f"The output '{folder}' cannot be made: "
    if not parent.is_dir():
        raise UserError(f"{problem}'{parent}' is not a folder that you may write to.")
    # The trial name is as long as the longest name that will be created.
    trial = parent / f".laconic-{secrets.token_hex(4)}".ljust(max(len(os.fsencode(name)) for name in missing), "-")
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{problem}its name is too long; give a shorter one.") from error
        reason = error.strerror or str(error)
        raise UserError(f"{problem}'{parent}' is not a folder that you may write to ({reason}).") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` at the end of the block, and removed if the block fails.

    Partial folders that killed processes left for the same path are removed.

    Args:
        folder: the path of the new folder.

    Raises:
        UserError: as in `check_output`; or another process is writing the same folder, or the disk is full or not
            writable.

    Example:
        >>> with new_folder(Path("out")) as partial:
        ...     _ = (partial / "file").write_text("content")
        ...     Path("out").exists()
        False
        >>> Path("out/file").read_text()
        'content'
    """
    folder = check_output(folder).absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            partial = folder.parent / f"{_partial_prefix(folder)}{secrets.token_hex(4)}"
            try:
                partial.mkdir()
                yield partial
                _flush(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _write_error(folder, error) from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, and remove the partial folders that killed processes left."""
    lock = folder.parent / f".{folder.name}.lock"
    try:
        with FileLock(lock, timeout=0):
            try:
                for stale in folder.parent.glob(f"{escape(_partial_prefix(folder))}*"):
                    shutil.rmtree(stale, ignore_errors=True)
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"Another run is writing '{folder}'; wait for it, or name another folder.") from error


def _partial_prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def _flush(folder: Path) -> None:
    """Flush all files of a folder to disk, so that the folder is not renamed before its content is written."""
    for path in (*(file for file in folder.rglob("*") if file.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(folder: Path, error: OSError | SafetensorError) -> UserError:
    # A SafetensorError contains the error code of the operating system only in its message.
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
        return UserError(f"The disk is full: '{folder}' was not written; free some space or name a folder elsewhere.")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UserError(f"The folder '{folder}' cannot be written: {reason}; name another folder.")
