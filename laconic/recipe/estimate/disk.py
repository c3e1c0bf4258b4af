"""Compare the files that a run will write with the free space of the disk."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from laconic.errors import UserError
from laconic.recipe.estimate.units import format_bytes


def check_disk(output: Path, needed: int, scratch: int) -> None:
    """Check that the disk has room for the result and the scratch files.

    Args:
        output: the folder that will be written; it need not exist.
        needed: bytes of the saved weights.
        scratch: bytes of scratch files beside the folder that are still to be written.

    Raises:
        UserError: less is free.
    """
    free = free_disk(output)
    if needed + scratch <= free:
        return
    parts = f"{format_bytes(needed)} for the result"
    parts += f" and {format_bytes(scratch)} for scratch files" if scratch else ""
    raise UserError(
        f"The disk of '{output}' has {format_bytes(free)} free, and the run needs about "
        f"{format_bytes(needed + scratch)} ({parts}); free some space, or name a folder on another disk."
    )


def free_disk(output: Path) -> int:
    """The bytes that are free on the disk of a folder, which need not exist."""
    return shutil.disk_usage(nearest_folder(output.absolute().parent)).free


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.is_dir() else nearest_folder(folder.parent)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, which may not exist. Files that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # A run that is still at work may delete files, and folders, which `os.walk` skips.
            with suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total
