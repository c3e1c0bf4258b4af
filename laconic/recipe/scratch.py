"""The scratch folder of a streamed run, which stays after a stop, so that the same run goes on from there."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laconic.calibrate.spill import INDEX, delete_states_of_others
from laconic.calibrate.stream import STATES
from laconic.compress.kept_choice import CHOICE
from laconic.compress.plan_file import PLAN
from laconic.errors import Notice
from laconic.files import hold_lock, replacing, report_unwritable

KEY = "key"
"""The file that says which run the folder belongs to."""


@contextmanager
def open_scratch(folder: Path, key: str, output: Path) -> Iterator[None]:
    """Make a scratch folder, or go on with the one that an earlier run with the same key left.

    The folder is removed at the end. After an error it stays if a part, a choice, a plan or the hidden states at one
    place are finished.

    Args:
        folder: the folder.
        key: a text that determines what the files of the folder hold.
        output: the output of the run, which one run at a time may write.

    Raises:
        UserError: another run writes the output, or the folder cannot be written.
    """
    with report_unwritable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"Another run is writing '{output}'; wait for it, or name another output."
    with hold_lock(lock_file(output), busy), _kept_after_errors(folder):
        with report_unwritable(folder):
            folder.mkdir(exist_ok=True)
            _prepare(folder, key)
        yield


@contextmanager
def _kept_after_errors(folder: Path) -> Iterator[None]:
    """Remove the folder at the end, but keep finished parts after an error."""
    try:
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
    shutil.rmtree(folder, ignore_errors=True)


def lock_file(output: Path) -> Path:
    """The file of the lock, beside the output."""
    return output.absolute().parent / f".{output.name}.scratch.lock"


def _prepare(folder: Path, key: str) -> None:
    """Remove what another run or a killed process left, and write the key."""
    file = folder / KEY
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace") == key:
        # Files that were not yet complete have temporary names.
        for partial in [path for path in folder.rglob(".*") if path.is_file()]:
            partial.unlink()
        delete_states_of_others(folder)
        return
    if _has_results(folder):
        warnings.warn(
            "The parts that an earlier run finished are not used, because the model, the data or laconic has changed "
            "since.",
            Notice,
            stacklevel=2,
        )
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with replacing(file, flush=True) as partial:
        partial.write_text(key, encoding="utf-8")


def _has_results(folder: Path) -> bool:
    """Whether a part of the model, a choice, a plan, or the hidden states at one place are finished."""
    return any(any(folder.rglob(name)) for name in ("*.safetensors", f"{STATES}/*/*{INDEX}", CHOICE, PLAN))
