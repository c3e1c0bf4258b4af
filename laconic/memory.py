"""The memory of this process, and the memory that is free on the machine.

Both are read from the files of Linux. On other systems they are unknown.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SECONDS_BETWEEN_SAMPLES = 0.005
NO_LIMIT = 2**60
"""Control groups of version 1 without a limit have a number near 2⁶³."""


def resident_memory() -> int | None:
    """The bytes of this process that are in memory now (its resident set); None if they are not known."""
    fields = _read(PROC / "self" / "statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None


def free_memory() -> int | None:
    """The bytes of memory that this process can still get; None if they are not known.

    They are what the machine has free, or what the limits of the control groups of a container leave, if that is less.
    """
    available = _bytes_named(PROC / "meminfo", "MemAvailable:")
    return min([*available, *_left_by_limits()], default=None)


def _left_by_limits() -> Iterator[int]:
    """The bytes that each control group of the process leaves."""
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version_1 = bool(controllers)
        root = CGROUPS / "memory" if version_1 else CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version_1 else ("memory.max", "memory.current")
        group = Path(path.lstrip("/"))
        # Within a container the path may be that of the machine, and the limits are at the root.
        for folder in dict.fromkeys((root / group, *((root / parent) for parent in group.parents))):
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None and limit < NO_LIMIT:
                yield max(0, limit - used + _reclaimable(folder))


def _reclaimable(group: Path) -> int:
    """The bytes of cached files in a control group that the system takes back when memory is needed."""
    fields = (line.split() for line in _lines(group / "memory.stat"))
    values = {name: int(value) for name, value in fields}
    return values.get("total_inactive_file", values.get("inactive_file", 0))


def _number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdecimal() else None


def _bytes_named(file: Path, name: str) -> list[int]:
    """The numbers of bytes that a file gives under a name, in kibibytes."""
    lines = (line.split() for line in _lines(file))
    return [int(fields[1]) * 1024 for fields in lines if fields[0] == name and len(fields) > 1]


def _lines(file: Path) -> list[str]:
    """The lines of a file that are not empty."""
    return [line for line in _read(file).splitlines() if line.strip()]


def _read(file: Path) -> str:
    """The text of a file; "" if there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""


def highest_memory() -> int | None:
    """The largest resident memory of this process since its start, in bytes; None if it is not known."""
    return next(iter(_bytes_named(PROC / "self" / "status", "VmHWM:")), None)


class Peak:
    """The largest resident memory so far, sampled; `bytes` is None if it is not known."""

    def __init__(self) -> None:
        self.bytes = resident_memory()

    def sample(self) -> None:
        """Take the memory of now into account."""
        now = resident_memory()
        self.bytes = now if self.bytes is None or now is None else max(self.bytes, now)


@contextmanager
def sampled_peak() -> Iterator[Peak]:
    """Measure the largest memory of this process within the block.

    The system counts the largest memory since the start of the process; a reset would change what others read. If the
    block exceeds it, it is exact. Otherwise the memory is sampled, which misses what a function takes that lets no
    other thread run.

    Example:
        >>> with sampled_peak() as peak:
        ...     zeros = bytes(2**20)
        >>> peak.bytes is None or peak.bytes > len(zeros)
        True
    """
    peak, ended, before = Peak(), threading.Event(), highest_memory()

    def sample() -> None:
        while not ended.wait(SECONDS_BETWEEN_SAMPLES):
            peak.sample()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.sample()
        highest = highest_memory()
        if before is not None and highest is not None and highest > before:
            peak.bytes = highest
