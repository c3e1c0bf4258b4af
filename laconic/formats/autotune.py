"""Which kernel multiplies by a matrix of codes fastest here: measured once for a shape, and kept in a file.

The file is of one processor, its instructions, the number of threads and the version of torch. Kernels run in turn,
round by round, so that a load on the machine hits all alike, and for few rows the caches are filled with something else
before each run, as other layers do in a model. The time of a kernel is the least of its runs.
"""

import hashlib
import json
import secrets
from bisect import bisect_left
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.cache import cache_folder, processor, short_numbers
from laconic.formats.kernels import DECODED, DENSE, Dense, Kernel, KernelFamily, working

SMALL = 2**16
"""Weights of a matrix below which calls cost more than products."""
ROWS = (1, 4, 16, 64, 256, 1024)
"""Numbers of rows that are measured; between two of them the larger stands for both, and the last for all above it."""
FEW_ROWS = 64
"""With no more than these, reading the matrix takes a good part of the time."""
CACHES = 2**26
"""Bytes that are written to before each run with few rows."""
ROUNDS, FEWEST_ROUNDS, PATIENCE = 15, 3, 1.5
"""Rounds, and the seconds after which fewer are enough."""
HOPELESS = 1.5
"""Times slower than the fastest, by the second round, is out."""
AS_FAST = 1.05
"""What the least of several times may be off by."""


class Choice(NamedTuple):
    """The fastest kernel, by name, and how many times as fast as a dense layer it is."""

    kernel: str
    speedup: float


class Question(NamedTuple):
    """`rows` of inputs times a matrix (out, in)."""

    rows: int
    out_features: int
    in_features: int
    dtype: torch.dtype


def autotune(family: KernelFamily[Any], rows: int, shape: tuple[int, int], dtype: torch.dtype) -> Choice:
    """What to multiply `rows` rows of `dtype` by a matrix of `shape` with, on this many threads."""
    if shape[0] * shape[1] < SMALL:
        return Choice(family.small, 1.0)
    depends_on = machine()
    name = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    table = _table(cache_folder() / f"kernels-{name}.json")
    return table.choice(family, Question(measured_rows(rows), *shape, dtype), depends_on)


def measured_rows(rows: int) -> int:
    """The number that is measured for `rows`."""
    return ROWS[min(bisect_left(ROWS, rows), len(ROWS) - 1)]


def machine() -> dict[str, Any]:
    """What the times of kernels depend on."""
    return {
        "processor": processor(),
        "instructions": " ".join((torch.backends.cpu.get_cpu_capability(), *short_numbers())),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


class Table:
    """Choices by question, kept in `file`; one that cannot be written to costs the measurement in the next process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Choice] = {}

    def choice(self, family: KernelFamily[Any], question: Question, depends_on: Mapping[str, Any]) -> Choice:
        """The answer, measured now if it has not been before."""
        sizes, dtype = "x".join(map(str, question[:3])), str(question.dtype).removeprefix("torch.")
        key = f"{family.name} {sizes} {dtype}"
        if key not in self._known:
            # Another process may have measured it meanwhile, and one answer serves all.
            self._known = _read(self._file) | self._known
        if key not in self._known or self._known[key].kernel not in family.makers:
            self._known[key] = measured(family, question)
            self._keep(depends_on)
        return self._known[key]

    def _keep(self, depends_on: Mapping[str, Any]) -> None:
        choices = {key: choice._asdict() for key, choice in sorted(self._known.items())}
        partial = self._file.with_suffix(f".{secrets.token_hex(4)}")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(json.dumps({"machine": dict(depends_on), "kernels": choices}, indent=1) + "\n")
                partial.replace(self._file)
            finally:
                partial.unlink(missing_ok=True)


@torch.inference_mode()
def measured(family: KernelFamily[Any], question: Question) -> Choice:
    """Of the kernels that give the right sums here, the fastest; within 5 %, the one that the family has first."""
    times = timed(family, question)
    dense = times[DENSE]
    times = {name: seconds for name, seconds in times.items() if name in family.makers}
    least = min(times.values())
    name = next(name for name in times if times[name] <= AS_FAST * least)
    return Choice(name, round(dense / times[name], 2))


@torch.inference_mode()
def timed(family: KernelFamily[Any], question: Question) -> dict[str, float]:
    """The least seconds of every kernel that gives the right sums here, and of a dense layer."""
    generator = torch.Generator().manual_seed(0)
    shape = (question.out_features, question.in_features)
    matrix = family.example(shape, generator)
    x = torch.rand(question.rows, question.in_features, generator=generator).to(question.dtype)
    x[0, 1:] = 1
    kernels = working(family, matrix, x)
    if DENSE not in kernels:
        # Not to be chosen: what the others are held against.
        kernels[DENSE] = Dense(family.dense(matrix, question.dtype))
    return least_seconds(kernels, x, x.new_zeros(shape[0]), family.makers)


def least_seconds(kernels: Mapping[str, Kernel], x: Tensor, bias: Tensor, choices: Collection[str]) -> dict[str, float]:
    """The least time of each in turn; of those that are far slower than another of the `choices`, from a few runs."""
    crowding = torch.zeros(CACHES // 4 if len(x) <= FEW_ROWS else 0)
    times = dict.fromkeys(kernels, float("inf"))
    start = perf_counter()
    for number in range(ROUNDS):
        least = min(times[name] for name in choices if name in times)
        for name, kernel in kernels.items():
            if number < 2 or name in (DECODED, DENSE) or times[name] <= HOPELESS * least:
                crowding.add_(1)
                began = perf_counter()
                kernel(x, bias)
                times[name] = min(times[name], perf_counter() - began)
        if number >= FEWEST_ROUNDS and perf_counter() - start > PATIENCE:
            break
    return times


@cache
def _table(file: Path) -> Table:
    return Table(file)


def _read(file: Path) -> dict[str, Choice]:
    try:
        stored = json.loads(file.read_text())["kernels"]
        return {key: Choice(str(entry["kernel"]), float(entry["speedup"])) for key, entry in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
