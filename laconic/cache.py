"""Where laconic keeps what is costly to find out again."""

import hashlib
import json
import os
import platform
import secrets
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

from laconic.errors import must_be
from laconic.paths import expanded

GIGABYTES = 8.0
"""What the solutions kept there may take together; `$LACONIC_CACHE_GB` says otherwise, 0 keeps none."""
SHORT_NUMBERS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
"""As the kernel of Linux calls them."""
CPUINFO = Path("/proc/cpuinfo")


def cache_folder() -> Path:
    """`$LACONIC_CACHE`, else `laconic` in `$XDG_CACHE_HOME`, else `~/.cache/laconic`; it may not exist yet."""
    own = os.environ.get("LACONIC_CACHE")
    if own:
        return expanded(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (expanded(shared) if shared else expanded("~/.cache")) / "laconic"


def cache_limit() -> int:
    """Bytes that kept solutions may take together.

    Raises:
        UserError: `$LACONIC_CACHE_GB` is no number, or below zero.
    """
    said = os.environ.get("LACONIC_CACHE_GB")
    try:
        gigabytes = GIGABYTES if said is None else float(said)
    except ValueError as error:
        raise must_be("The environment variable LACONIC_CACHE_GB", "a number of gigabytes", said) from error
    if not 0 <= gigabytes < inf:
        raise must_be("The environment variable LACONIC_CACHE_GB", "in [0, ∞)", gigabytes)
    return int(gigabytes * 1e9)


def processor() -> str:
    """What the processor calls itself: times that are kept are of one."""
    return _cpuinfo("model name") or platform.processor()


def short_numbers() -> tuple[str, ...]:
    """Of the instructions that multiply numbers of 8 and 16 bits, those that this processor has; on Linux only."""
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
    partial = file.with_suffix(f".{secrets.token_hex(4)}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps({"machine": dict(machine), key: dict(values)}, indent=1) + "\n")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def _cpuinfo(entry: str) -> str:
    """Of the first core, "" where it is not told."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(entry)), "")
