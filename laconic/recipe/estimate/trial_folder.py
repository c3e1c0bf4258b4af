"""The folder of a trial: on the disk of the output, with a name and a lock of its own."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from laconic.errors import UserError
from laconic.files import hold_lock, report_unwritable
from laconic.recipe.estimate.disk import nearest_folder


@contextmanager
def trial_folder(output: Path) -> Iterator[Path]:
    """Make a folder for a trial, and remove it at the end. Folders that killed trials left are removed before.

    Args:
        output: the output of the whole run. The folder lies beside it, or in the nearest folder above that exists.

    Raises:
        UserError: another trial for the same output is running, or the folder cannot be written.
    """
    output = output.absolute()
    parent = nearest_folder(output.parent)
    name = _name(output)
    # The folder that was nearest to the output may have been another one when a trial was killed.
    for above in parent.parents:
        if (above / name).is_dir():
            # A folder that is locked is in use.
            with suppress(UserError), _hold_lock(above / name, output):
                shutil.rmtree(above / name, ignore_errors=True)
    folder = parent / name
    with _hold_lock(folder, output):
        shutil.rmtree(folder, ignore_errors=True)
        with report_unwritable(folder):
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _name(output: Path) -> str:
    """The name of the folder. Outputs of the same name in different folders have different ones."""
    digest = hashlib.blake2b(str(output).encode(), digest_size=4).hexdigest()
    return f".{output.name}.trial-{digest}"


def _hold_lock(folder: Path, output: Path) -> AbstractContextManager[None]:
    """The lock of the folder of a trial, as `hold_lock`."""
    busy = f"Another process measures a run that writes '{output}'; wait for it."
    return hold_lock(folder.with_name(f"{folder.name}.lock"), busy)
