"""A folder that appears whole or not at all: written under another name beside its place, flushed, and renamed."""

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
from laconic.paths import expanded


def check_output(folder: Path, *models: str) -> Path:
    """`folder` with the user's home in place of ~, once it is known that a new folder can be made there.

    models: what the output is made of, as the user named it; of a folder the output must lie outside.

    Raises:
        UserError: something is there already, or it lies in the folder of a model, or its parent is no folder that can
            be written to.
    """
    folder = _named(folder)
    _check_outside(folder, models)
    if _is_there(folder):
        raise UserError(f"The output '{folder}' exists already; name a new folder or remove it first.")
    _check_room(folder)
    return folder


def check_place(folder: Path, *models: str) -> Path:
    """As `check_output`, of a folder that may be there already and is added to."""
    folder = _named(folder)
    _check_outside(folder, models)
    if _is_there(folder) and not folder.is_dir():
        raise UserError(f"The output '{folder}' is no folder; name a folder, which may be new.")
    _check_room(folder)
    return folder


def _named(folder: Path) -> Path:
    """`folder` with the user's home in place of ~, unless its name is one that safetensors cannot open."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The output {str(folder)!a} is not named in UTF-8; name it so.") from error
    if "\0" in str(folder):
        raise UserError(f"The output {str(folder)!a} has the character NUL in its name; leave it out.")
    return expanded(folder)


def _check_outside(folder: Path, models: Iterable[str]) -> None:
    """Raise where `folder` is that of a model or lies in it: what is in there is taken for a part of the model."""
    place = os.path.realpath(folder)
    for model in models:
        # A name that no folder has is refused, with what is wrong with it, where the model is looked for.
        if not model.strip() or not os.path.isdir(expanded(model)):
            continue
        own = os.path.realpath(expanded(model))
        if os.path.commonpath((own, place)) == own:
            where = "is the folder of the model" if place == own else "lies in the folder of the model"
            raise UserError(f"The output '{folder}' {where} '{model}'; name a folder outside of it.")


def _is_there(path: Path) -> bool:
    """Also of a link that leads nowhere, and not of a name that no file can have."""
    return os.path.lexists(path)


def _check_room(folder: Path) -> None:
    """Raise unless a folder can be made where `folder` is to be: permissions alone do not tell that of every place."""
    parent, missing = folder.absolute(), [_prefix(folder) + secrets.token_hex(4)]
    while not _is_there(parent):
        missing.append(parent.name)
        parent = parent.parent
    refused = f"The output '{folder}' cannot be made: "
    if not parent.is_dir():
        raise UserError(f"{refused}'{parent}' is not a folder that you may write to.")
    # As long as the longest name that will be there.
    trial = parent / f".laconic-{secrets.token_hex(4)}".ljust(max(len(os.fsencode(name)) for name in missing), "-")
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{refused}its name is too long; give a shorter one.") from error
        reason = error.strerror or str(error)
        raise UserError(f"{refused}'{parent}' is not a folder that you may write to ({reason}).") from error


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
