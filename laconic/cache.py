"""The disk cache for results that take long to compute, and files of measurements on one machine."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_cache_path
from safetensors import SafetensorError

from laconic.errors import must_be
from laconic.files import expand_user, replacing, write_json

GIGABYTES = 8.0
"""The default limit for all entries of one cache; `$LACONIC_CACHE_GB` changes it, and 0 turns caches off."""
ABANDONED = 24 * 3600.0
"""Seconds after which the half-written file of a killed run is removed."""
DAMAGED = (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError)
"""Exceptions that reading a damaged cache entry can raise."""

Entry = TypeVar("Entry")


def cache_folder() -> Path:
    """The path of the cache folder; the folder may not exist yet.

    It is `$LACONIC_CACHE` if that is set, else `$XDG_CACHE_HOME/laconic`, else `laconic` in the cache folder of the
    system: `~/.cache` on Linux, `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows.
    """
    own, shared = os.environ.get("LACONIC_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return expand_user(own)
    return expand_user(shared) / "laconic" if shared else user_cache_path("laconic", appauthor=False)


def cache_limit() -> int:
    """The largest total size of the entries of one cache, in bytes.

    Raises:
        UserError: `$LACONIC_CACHE_GB` is not a number, or is negative or infinite.
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
    """A cache of files by key, in one folder. The total size is at most `cache_limit()`.

    An entry is written whole or not at all. The least recently used entries are removed to make room for new ones. An
    entry that is missing, damaged or cannot be written raises no error: its result is computed again. With
    `LACONIC_CACHE_GB=0` the cache reads and writes nothing.

    Args:
        name: the name of the folder in `cache_folder()`.
        suffix: the file name suffix of entries, with its dot.
    """

    def __init__(self, name: str, suffix: str) -> None:
        self._name, self._suffix = name, suffix

    def path(self, key: str) -> Path:
        """The file of an entry, which may not exist."""
        return cache_folder() / self._name / f"{key}{self._suffix}"

    def read(self, key: str, load: Callable[[Path], Entry]) -> Entry | None:
        """Read an entry, and set the modification time of its file to now.

        Args:
            key: the name of the entry.
            load: reads the file at a path. If it raises one of `DAMAGED`, the entry counts as missing.

        Returns:
            The result of `load`; None if there is no readable entry.

        Raises:
            UserError: `$LACONIC_CACHE_GB` is not a number, or is negative or infinite.
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
        """Write an entry, unless it is larger than the limit. A file system error is ignored.

        Args:
            key: the name of the entry.
            save: writes the file at a path.
            nbytes: the expected size in bytes, 0 if unknown. An entry that is expected to be too large is not written.

        Raises:
            UserError: `$LACONIC_CACHE_GB` is not a number, or is negative or infinite.
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
    """Remove the least recently used entries until the others take at most `limit` bytes.

    Args:
        entries: files or folders. Their modification time counts as the time of last use.
        limit: the largest total size of the entries that are kept, in bytes.
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
    """Remove partial files of killed runs that are older than `ABANDONED` seconds."""
    for partial in folder.iterdir():
        stale = time.time() - partial.stat().st_mtime > ABANDONED
        if stale and (partial.name[0] == "." or partial.suffix != suffix):
            partial.unlink(missing_ok=True)


def machine_file(kind: str, machine: Mapping[str, Any]) -> Path:
    """The path of a file for measurements on one machine; the file may not exist yet.

    Args:
        kind: the beginning of the file name.
        machine: everything that the measurements depend on, as JSON values. The file name contains a hash of it.
    """
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"{kind}-{digest}.json"


def read_measurements(file: Path, key: str) -> dict[str, Any]:
    """The values under `key` in a file that `write_measurements` wrote; empty if the file cannot be read."""
    try:
        return dict(json.loads(file.read_text())[key])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write_measurements(file: Path, key: str, values: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Replace a file of measurements. Does nothing if the folder is not writable.

    Args:
        file: the path, from `machine_file`.
        key: the key under which the values are stored.
        values: the measurements, as JSON values by name.
        machine: everything that the measurements depend on; it is stored in the same file.
    """
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"machine": dict(machine), key: dict(values)})
