"""Run a command in a process of its own, and measure its memory, its time and the files that it makes."""

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_SAMPLES = 0.05
CACHE, SCRATCH = "cache", "scratch"


def measure(command: Sequence[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command on one thread, and measure it.

    Args:
        command: the program and its arguments.
        folder: a new folder, which is the working folder and has the cache of the process.
        environment: further environment variables.

    Returns:
        `cpu_seconds` (user), `system_seconds` and `seconds`; `peak`, the largest resident set (VmHWM), and `anonymous`,
        the largest part of it that is no file (sampled); `scratch`, the largest size of scratch folders, `disk`, that
        of all files, and `cache`, the size of the cache at the end, in bytes.

    Raises:
        RuntimeError: the command fails.
    """
    folder.mkdir(parents=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "LACONIC_CACHE": str(folder / CACHE), **environment}
    largest: dict[str, int] = dict.fromkeys(("peak", "anonymous", "scratch", "disk"), 0)
    start = time.perf_counter()
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=said)
        ended, status, usage = 0, 0, None
        while ended == 0:
            for name, value in {**_memory(process.pid), **_sizes(folder)}.items():
                largest[name] = max(largest[name], value)
            time.sleep(SECONDS_BETWEEN_SAMPLES)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode != 0 or usage is None:
        words = (folder / "said").read_text()[-4000:]
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{words}")
    return {
        "cpu_seconds": usage.ru_utime,
        "system_seconds": usage.ru_stime,
        "seconds": seconds,
        **largest,
        "cache": _total(folder / CACHE),
    }


def _memory(process_id: int) -> dict[str, int]:
    """Bytes of the resident memory of a process: the most so far, and what is no file now."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = {line.split(":")[0]: line.split()[1:] for line in lines}
    # A process that has ended, and was not waited for yet, has no memory.
    names = {"VmHWM": "peak", "RssAnon": "anonymous"}
    return {names[field]: 1024 * int(fields[field][0]) for field in names if field in fields}


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the scratch folders in a folder, and of all files except the cache."""
    sizes: dict[str, int] = {}
    for path in folder.iterdir():
        # A folder below may vanish while it is walked.
        with suppress(FileNotFoundError):
            sizes |= {path.name: _total(path)} if path.name != CACHE else {}
    return {
        "scratch": sum(size for name, size in sizes.items() if SCRATCH in name),
        "disk": sum(sizes.values()),
    }


def _total(path: Path) -> int:
    """Bytes on disk of a file, or of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for file in (path, *path.rglob("*")):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        total += 0 if file.is_dir() else 512 * status.st_blocks
    return total
