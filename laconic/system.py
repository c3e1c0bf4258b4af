"""The system that the process runs on: its processor, and whether a launcher started several processes."""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that `torchrun`, `accelerate launch` and other launchers set in each process."""
SHORT_NUMBERS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
"""CPU instruction sets for 8- and 16-bit arithmetic, by their names in `/proc/cpuinfo`."""
CPUINFO = Path("/proc/cpuinfo")


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return all(name in os.environ for name in LAUNCHED) and os.environ["WORLD_SIZE"] != "1"


def processor() -> str:
    """The name of the CPU; timings in the cache are stored under it."""
    return _cpuinfo("model name") or platform.processor()


def short_numbers() -> tuple[str, ...]:
    """The instruction sets in `SHORT_NUMBERS` that the CPU has; empty if there is no `/proc/cpuinfo`."""
    flags = f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split()
    return tuple(name for name in SHORT_NUMBERS if name in flags)


def release_freed_memory() -> None:
    """Return freed memory to the system; glibc would keep hundreds of megabytes of it. Other C libraries keep less."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _cpuinfo(entry: str) -> str:
    """The value of a field of `/proc/cpuinfo` for the first core; "" if there is none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(entry)), "")
