"""The scratch folder of a streamed run, which stays after a stop, so that the same run goes on from there."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from laconic.calibrate.spill import INDEX
from laconic.calibrate.stream import STATES
from laconic.errors import Notice, UserError
from laconic.files import replacing
from laconic.model.loans_parts import report_unwritable

KEY = "key"
"""The file that says which run the folder belongs to."""
LOCK = "lock"
"""The file that the process holds which uses the folder; the system releases it when the process is killed."""


@contextmanager
def open_scratch(folder: Path, key: str) -> Iterator[None]:
    """Make a scratch folder, or go on with the one that an earlier run with the same key left.

    The folder is removed at the end. After an error it stays if a part or the hidden states at one place are finished.

    Args:
        folder: the folder.
        key: a text that determines what the files of the folder hold.

    Raises:
        UserError: another run uses the folder, or it cannot be written.
    """
    with report_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    try:
        with report_unwritable(folder):
            _prepare(folder, key)
        yield
    except BaseException:
        if _has_results(folder):
            warnings.warn(
                f"The finished parts are kept in '{folder}', from where the same command goes on; remove it to start "
                "again.",
                Notice,
                stacklevel=2,
            )
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another run is using the scratch folder '{folder}'; wait for it, or name another output."
        ) from error
    return lock


def _prepare(folder: Path, key: str) -> None:
    """Remove what another run or a killed process left, and write the key."""
    file = folder / KEY
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace") == key:
        # Files that were not yet complete have temporary names.
        for partial in [path for path in folder.rglob(".*") if path.is_file()]:
            partial.unlink()
        return
    if _has_results(folder):
        warnings.warn(
            "The parts that an earlier run finished are not used, because the model, the data or laconic has changed "
            "since.",
            Notice,
            stacklevel=2,
        )
    for path in [path for path in folder.iterdir() if path.name != LOCK]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with replacing(file, flush=True) as partial:
        partial.write_text(key, encoding="utf-8")


def _has_results(folder: Path) -> bool:
    """Whether a part of the model, or hidden states at one place, are finished."""
    return any(folder.rglob("*.safetensors")) or any(folder.rglob(f"{STATES}/*{INDEX}"))
