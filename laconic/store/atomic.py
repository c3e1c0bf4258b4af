"""Output folders that appear whole or not at all: written under another name beside their path, flushed, renamed."""

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
from laconic.files import expanded


def check_output(folder: Path, *models: str, exist_ok: bool = False) -> Path:
    """`folder` with `~` replaced by the user's home, after checking that an output can be written there.

    Args:
        folder: where the output is to be.
        models: the models that it is made from, as the user named them; it must lie outside of their folders.
        exist_ok: allow a folder that is there already, for an output that is added to it.

    Raises:
        UserError: something is there already, or the folder lies in that of a model, or its parent is no folder that
            can be written to.

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
    """`folder` with the user's home expanded, if its name is one that safetensors can open."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The output {str(folder)!a} is not named in UTF-8; name it so.") from error
    if "\0" in str(folder):
        raise UserError(f"The output {str(folder)!a} has the character NUL in its name; leave it out.")
    return expanded(folder)


def _check_outside(folder: Path, models: Iterable[str]) -> None:
    """Raise where `folder` is that of a model or lies in it: loading takes all files there for parts of the model."""
    path = os.path.realpath(folder)
    for model in models:
        # A name that is no folder is checked where the model is looked up.
        if not model.strip() or not os.path.isdir(expanded(model)):
            continue
        model_path = os.path.realpath(expanded(model))
        if os.path.commonpath((model_path, path)) == model_path:
            where = "is the folder of the model" if path == model_path else "lies in the folder of the model"
            raise UserError(f"The output '{folder}' {where} '{model}'; name a folder outside of it.")


def _check_writable(folder: Path) -> None:
    """Raise unless `folder` can be made, by making another one beside it: permissions alone do not show that."""
    parent, missing = folder.absolute(), [_partial_prefix(folder) + secrets.token_hex(4)]
    while not os.path.lexists(parent):
        missing.append(parent.name)
        parent = parent.parent
    problem = f"The output '{folder}' cannot be made: "
    if not parent.is_dir():
        raise UserError(f"{problem}'{parent}' is not a folder that you may write to.")
    # As long as the longest name that will be made.
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
    """Yield a folder to write in, which becomes `folder` when the block ends; it is removed if the block fails.

    Args:
        folder: the path of the new folder. Only one process at a time can write it, and folders that killed processes
            left half-written beside it are removed.

    Raises:
        UserError: as in `check_output`, or another process is writing it, or the disk is full or cannot be written to.

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
    """Have the operating system write all files to disk, so that no folder is renamed before its content is there."""
    for path in (*(file for file in folder.rglob("*") if file.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(folder: Path, error: OSError | SafetensorError) -> UserError:
    # safetensors reports the operating system's error in its text only.
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
        return UserError(f"The disk is full: '{folder}' was not written; free some space or name a folder elsewhere.")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UserError(f"The folder '{folder}' cannot be written: {reason}; name a folder that can.")
