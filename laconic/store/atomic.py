"""Atomic output folders: written under a temporary name beside the final path, flushed to disk, then renamed."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

from laconic.errors import UserError
from laconic.files import FULL, error_code, expand_user, hold_lock, system_reason


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
        raise UserError(
            f"{problem}'{parent}' is not a folder that you may write to ({system_reason(error)})."
        ) from error


@contextmanager
def new_folder(folder: Path, only: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` at the end of the block, and removed if the block fails.

    Partial folders that killed processes left for the same path are removed.

    Args:
        folder: the path of the new folder.
        only: the name of a file in it that is the whole output; it then gets the path, and the folder is removed.

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
        with _hold_lock(folder):
            for stale in folder.parent.glob(f"{escape(_partial_prefix(folder))}*"):
                shutil.rmtree(stale, ignore_errors=True)
            partial = folder.parent / f"{_partial_prefix(folder)}{secrets.token_hex(4)}"
            try:
                partial.mkdir()
                yield partial
                _flush(partial)
                (partial if only is None else partial / only).rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _write_error(folder, error) from error


def _hold_lock(folder: Path) -> AbstractContextManager[None]:
    """The lock of `folder`, as `hold_lock`."""
    busy = f"Another run is writing '{folder}'; wait for it, or name another folder."
    return hold_lock(folder.parent / f".{folder.name}.lock", busy)


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
    if error_code(error) in FULL:
        return UserError(f"The disk is full: '{folder}' was not written; free some space or name a folder elsewhere.")
    return UserError(f"The folder '{folder}' cannot be written: {system_reason(error)}; name another folder.")
