"""The folder where laconic keeps results that are costly to compute again, and the processor that they are of."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_cache_path
from safetensors import SafetensorError

from laconic.errors import must_be
from laconic.files import expanded, replacing, write_json

GIGABYTES = 8.0
"""The default limit for all entries of one cache; `$LACONIC_CACHE_GB` changes it, and 0 turns caches off."""
ABANDONED = 24 * 3600.0
"""Seconds after which the half-written file of a killed run is removed."""
SHORT_NUMBERS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
"""Names of instructions for numbers of 8 and 16 bits, as the kernel of Linux spells them."""
CPUINFO = Path("/proc/cpuinfo")
DAMAGED = (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError)
"""What reading a damaged entry raises."""

Entry = TypeVar("Entry")


def cache_folder() -> Path:
    """`$LACONIC_CACHE`, else `laconic` in `$XDG_CACHE_HOME`, else in the system's cache folder; it may not exist yet.

    The system's cache folder is `~/.cache` on Linux, `~/Library/Caches` on macOS and `%LOCALAPPDATA%` on Windows.
    """
    own, shared = os.environ.get("LACONIC_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return expanded(own)
    return expanded(shared) / "laconic" if shared else user_cache_path("laconic", appauthor=False)


def cache_limit() -> int:
    """The bytes that the entries of one cache may take together.

    Raises:
        UserError: `$LACONIC_CACHE_GB` is no number, or below zero.
    """
    text = os.environ.get("LACONIC_CACHE_GB")
    try:
        gigabytes = GIGABYTES if text is None else float(text)
    except ValueError as error:
        raise must_be("The environment variable LACONIC_CACHE_GB", "a number of gigabytes", text) from error
    if not 0 <= gigabytes < inf:
        raise must_be("The environment variable LACONIC_CACHE_GB", "in [0, ∞)", gigabytes)
    return int(gigabytes * 1e9)


class DiskCache:
    """Files by key in a folder of the cache, together no larger than `cache_limit()`.

    Entries are written whole or not at all, the least recently used make room for new ones, and one that is lost,
    damaged or cannot be written costs the computation again and nothing else. With `LACONIC_CACHE_GB=0` nothing is read
    or written.

    Args:
        name: the folder in `cache_folder()`.
        suffix: of the files, with its dot.
    """

    def __init__(self, name: str, suffix: str) -> None:
        self._name, self._suffix = name, suffix

    def path(self, key: str) -> Path:
        """The file of an entry, which may not exist."""
        return cache_folder() / self._name / f"{key}{self._suffix}"

    def read(self, key: str, load: Callable[[Path], Entry]) -> Entry | None:
        """The entry `key`, and a note that it was used now; None where there is none that can be read.

        Args:
            key: its name.
            load: reads the file; an error of reading (`DAMAGED`) counts as no entry.

        Raises:
            UserError: `$LACONIC_CACHE_GB` is no size.
        """
        if cache_limit() == 0:
            return None
        path = self.path(key)
        try:
            entry = load(path)
            os.utime(path)
        except DAMAGED:
            return None
        return entry

    def write(self, key: str, save: Callable[[Path], object], nbytes: int = 0) -> None:
        """Write the entry `key`, unless it alone is larger than the limit.

        Args:
            key: its name.
            save: writes the file at the path that it is given.
            nbytes: about how large it will be, where that is known before: one that is too large is not even begun.

        Raises:
            UserError: `$LACONIC_CACHE_GB` is no size.
        """
        path, limit = self.path(key), cache_limit()
        if limit == 0 or nbytes > limit:
            return
        with contextlib.suppress(OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save(partial)
            size = path.stat().st_size
            if size > limit:
                path.unlink()
            else:
                others = (other for other in path.parent.glob(f"*{self._suffix}") if other.name[0] != ".")
                evict([other for other in others if other != path], limit - size)
            _sweep(path.parent, self._suffix)


def evict(entries: Iterable[Path], limit: int) -> None:
    """Remove the least recently used of `entries` until the others take at most `limit` bytes.

    Args:
        entries: files or folders; the time of last use is the modification time.
        limit: bytes.
    """
    used: list[tuple[float, int, Path]] = []
    for path in entries:
        with contextlib.suppress(OSError):
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            used.append((path.stat().st_mtime, sum(file.stat().st_size for file in files), path))
    total = 0
    for _, size, path in sorted(used, reverse=True):
        total += size
        if total > limit:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _sweep(folder: Path, suffix: str) -> None:
    """Remove what killed runs left half written."""
    for partial in folder.iterdir():
        stale = time.time() - partial.stat().st_mtime > ABANDONED
        if stale and (partial.name[0] == "." or partial.suffix != suffix):
            partial.unlink(missing_ok=True)


def processor() -> str:
    """The name of this processor; measured times hold for one."""
    return _cpuinfo("model name") or platform.processor()


def short_numbers() -> tuple[str, ...]:
    """The instructions of `SHORT_NUMBERS` that this processor has; none where there is no `/proc/cpuinfo`."""
    flags = f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split()
    return tuple(name for name in SHORT_NUMBERS if name in flags)


def machine_file(kind: str, machine: Mapping[str, Any]) -> Path:
    """The file of the cache folder for what was measured on one machine; it may not exist yet.

    Args:
        kind: the beginning of its name.
        machine: what the measurements depend on, JSON values.
    """
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"{kind}-{digest}.json"


def read_measurements(file: Path, key: str) -> dict[str, Any]:
    """The values under `key` in a file that `write_measurements` wrote; none where it cannot be read."""
    try:
        return dict(json.loads(file.read_text())[key])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write_measurements(file: Path, key: str, values: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Replace a file of measurements; nothing happens where the folder cannot be written to.

    Args:
        file: the file.
        key: the name of the values in it.
        values: JSON values by name.
        machine: what they depend on, written beside them.
    """
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"machine": dict(machine), key: dict(values)})


def _cpuinfo(entry: str) -> str:
    """The value of an entry for the first core; empty where there is none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(entry)), "")
