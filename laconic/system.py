"""The system that the process runs on: its processor, and whether a launcher started several processes."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that `torchrun`, `accelerate launch` and other launchers set in each process."""
SHORT_NUMBERS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
"""CPU instruction sets for 8- and 16-bit arithmetic, by their names in `/proc/cpuinfo`."""
CPUINFO = Path("/proc/cpuinfo")
KEPT_NBYTES = 2**25 - 2**16
"""A little less than the largest block that glibc keeps by itself when it is freed."""
LARGE_NBYTES = 2**28
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


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
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MB for later ones; other C libraries are not changed.

    The system fills every new page with zeros, which can take longer than decoding a matrix into it. glibc returns
    blocks that are larger than any that it has freed before, so one large block is freed here. No page of it is used.
    """
    if _has_glibc():
        library = ctypes.CDLL(None)
        library.malloc.restype = ctypes.c_void_p
        library.free(ctypes.c_void_p(library.malloc(ctypes.c_size_t(KEPT_NBYTES))))


@contextmanager
def keeping_large_blocks() -> Iterator[None]:
    """Within the context glibc keeps freed blocks of up to 256 MB for later ones, and releases them at its end.

    Tensors of one batch after another then get the same pages. glibc would otherwise return each block of more than
    32 MB, and the system would fill its new pages with zeros. Other C libraries are not changed.
    """
    if not _has_glibc():
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, LARGE_NBYTES)
    library.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_NBYTES)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_THRESHOLD, KEPT_NBYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * KEPT_NBYTES)
        release_freed_memory()


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
