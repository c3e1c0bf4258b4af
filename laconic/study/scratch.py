"""Where models are saved only to be judged: a folder of each process, and what a killed one left is cleared away."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from laconic.study.leases import is_running

PREFIX = ".scratch"


@contextmanager
def scratch(place: Path | None) -> Iterator[Path]:
    """Within the block an empty folder in `place`, or among the system's temporary ones; gone after it."""
    if place is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    folder = place / f"{_of_this_machine()}{os.getpid()}"
    # A process that was killed may have had the same number.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def clear_away(place: Path) -> None:
    """Remove what processes of this machine that were killed have left in `place`."""
    for folder in place.glob(f"{_of_this_machine()}*"):
        pid = folder.name.removeprefix(_of_this_machine())
        if pid.isdecimal() and not is_running(int(pid)):
            # Another process may be at the same.
            shutil.rmtree(folder, ignore_errors=True)


def _of_this_machine() -> str:
    return f"{PREFIX}-{socket.gethostname()}-"
