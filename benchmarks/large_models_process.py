"""Run a command in a process of its own, and measure its memory, its time and the files that it makes."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_SAMPLES = 0.05
CACHE, SCRATCH, OUTPUT = "cache", "scratch", "output"
FINISHED_PARTS = f".*{SCRATCH}*/*/parts/*.safetensors"


def measure(
    command: Sequence[str], folder: Path, environment: dict[str, str], kill_after: Sequence[float] = ()
) -> dict[str, Any]:
    """Run a command on one thread, and measure it.

    Args:
        command: the program and its arguments.
        folder: a new folder, which is the working folder and has the cache of the process.
        environment: further environment variables.
        kill_after: ascending numbers of parts. When so many are finished, the process is killed (SIGKILL), and the
            same command starts again. 2.5 is halfway through the third part, if it takes as long as the second.

    Returns:
        `cpu_seconds` (user), `system_seconds` and `seconds` of all processes together; `peak`, the largest resident set
        (VmHWM), and `anonymous`, the largest part of it that is no file (sampled); `scratch`, the largest size of
        scratch folders, `disk`, that of all files, and `cache`, the size of the cache at the end, in bytes.

    Raises:
        RuntimeError: the command fails, or ends before so many parts are finished.
    """
    folder.mkdir(parents=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "LACONIC_CACHE": str(folder / CACHE), **environment}
    largest: dict[str, int] = dict.fromkeys(("peak", "anonymous", "scratch", "disk"), 0)
    times = dict.fromkeys(("cpu_seconds", "system_seconds"), 0.0)
    start = time.perf_counter()
    for parts in (*kill_after, None):
        code, usage = _run(command, folder, variables, largest, parts)
        if code != (0 if parts is None else -signal.SIGKILL):
            words = (folder / OUTPUT).read_text()[-4000:]
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{words}")
        times["cpu_seconds"] += usage.ru_utime
        times["system_seconds"] += usage.ru_stime
    return {**times, "seconds": time.perf_counter() - start, **largest, "cache": _total(folder / CACHE)}


def _run(
    command: Sequence[str], folder: Path, variables: dict[str, str], largest: dict[str, int], parts: float | None
) -> tuple[int, resource.struct_rusage]:
    """The exit code and the usage of one process, which is killed when so many parts are finished.

    Args:
        command: the program and its arguments.
        folder: the working folder.
        variables: all environment variables.
        largest: the largest sizes so far, which are raised.
        parts: as one number of `kill_after`; None not to kill the process.
    """
    finished, last_finished, seconds_of_part = 0, time.perf_counter(), 0.0
    with (folder / OUTPUT).open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output)
        while True:
            for name, value in {**_memory(process.pid), **_sizes(folder)}.items():
                largest[name] = max(largest[name], value)
            now = time.perf_counter()
            if (count := len(list(folder.glob(FINISHED_PARTS)))) > finished:
                finished, last_finished, seconds_of_part = count, now, now - last_finished
            # A part of 2.5 waits for half the seconds that the second part took.
            if parts and finished >= int(parts) and now - last_finished >= parts % 1 * seconds_of_part:
                process.kill()
            time.sleep(SECONDS_BETWEEN_SAMPLES)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage


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
