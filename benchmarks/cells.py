"""What the benchmarks of quality share: cells, each one line of a file, and how a table says them.

A cell is written when it is finished, so a run that was stopped goes on where it was.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

from benchmarks.common import RESULTS

Key = TypeVar("Key", bound=tuple)


@dataclass(frozen=True)
class Cells:
    """The cells of one benchmark.

    name: of its file under benchmarks/results/.
    same: what makes a cell the same cell.
    """

    name: str
    same: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the cells are."""
        return RESULTS / f"{self.name}.jsonl"

    def __iter__(self) -> Iterator[dict]:
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                yield json.loads(line)

    def __str__(self) -> str:
        return f"{sum(1 for _ in self)} cells in {self.path}"

    def missing(self, wanted: Iterable[Key]) -> list[Key]:
        """Those that have no line yet, in order."""
        done = {tuple(cell[key] for key in self.same) for cell in self}
        return [key for key in wanted if key not in done]

    def where(self, **named: Any) -> list[dict]:
        """Those that have these values."""
        return [cell for cell in self if all(cell[name] == value for name, value in named.items())]

    def add(self, key: tuple, cell: dict) -> None:
        """Keep a finished cell."""
        RESULTS.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**cell, **dict(zip(self.same, key, strict=True))}) + "\n")


def quality(here: Sequence[dict], bold: bool = False, digits: int = 4) -> str:
    """KL with its spread over the seeds / metric; empty where nothing was measured."""
    if not here:
        return ""
    kls = [cell["kl"] for cell in here]
    places = places_of(mean(kls), digits)
    around = f" ± {stdev(kls):.{places}f}" if len(kls) > 1 else ""
    return in_bold(f"{mean(kls):.{places}f}{around} / {mean(cell['metric'] for cell in here):.3f}", bold)


def short_quality(here: Sequence[dict], bold: bool = False) -> str:
    """KL / metric, means over the seeds."""
    kl = mean_of(here, "kl")
    return in_bold(f"{kl:.{places_of(kl)}f} / {mean_of(here, 'metric'):.3f}", bold)


def places_of(value: float, least: int = 4) -> int:
    """Decimals to write it with: `least`, or as many, up to six, as it takes to show two of its digits."""
    return max(least, min(1 - floor(log10(max(abs(value), 1e-6))), 6))


def in_bold(text: str, bold: bool) -> str:
    """`text` as Markdown."""
    return f"**{text}**" if bold else text


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and spread over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (one seed)"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def mean_of(here: Sequence[dict], what: str) -> float:
    """The mean of one value; infinite where nothing was measured."""
    return mean(cell[what] for cell in here) if here else float("inf")
