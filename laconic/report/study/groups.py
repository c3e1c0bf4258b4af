"""Cells that differ in their seed alone, as one: means, and how far the seeds are apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

from laconic.report.study.results_table import DONE, SEED, Results, Row
from laconic.report.tables import Value


@dataclass(frozen=True)
class Spread:
    """The mean over `count` cells and their sample standard deviation, None of one cell; formats as `mean ± it`."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __mul__(self, scale: float) -> "Spread":
        return Spread(self.mean * scale, None if self.deviation is None else self.deviation * scale, self.count)

    def __format__(self, form: str) -> str:
        mean = format(self.mean, form)
        # What does not depend on the seed has no spread to speak of.
        return f"{mean} ± {format(self.deviation, form.replace('+', ''))}" if self.deviation else mean


@dataclass(frozen=True)
class Group:
    """axes: value by column, the seed's left out; `rows` are its cells, failed ones too."""

    axes: Mapping[str, Value]
    rows: tuple[Row, ...]

    @cached_property
    def done(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row["state"] == DONE)

    @property
    def keys(self) -> frozenset[str]:
        """Of its cells."""
        return frozenset(str(row["key"]) for row in self.rows)

    @property
    def family(self) -> str:
        return str(self.rows[0]["family"] or "other")

    @property
    def baseline(self) -> bool:
        return bool(self.rows[0]["baseline"])

    def numbers(self, column: str) -> list[float]:
        """What its cells have there; a cell without it adds nothing."""
        return [float(value) for row in self.done if isinstance(value := row.get(column), (int, float))]

    def spread(self, column: str) -> Spread | None:
        """Mean and deviation over its cells; None where none has it."""
        numbers = self.numbers(column)
        return Spread.of(numbers) if numbers else None

    def mean(self, column: str) -> float | None:
        found = self.spread(column)
        return found and found.mean


def grouped(results: Results) -> list[Group]:
    """Originals first, then in the order of the first cell of each."""
    axes = [column for name, column in results.axes.items() if name != SEED]
    found: dict[tuple[Value, ...], list[Row]] = {}
    for row in results.rows:
        found.setdefault((row["baseline"], *(row[column] for column in axes)), []).append(row)
    groups = [Group(dict(zip(axes, key[1:], strict=True)), tuple(rows)) for key, rows in found.items()]
    return sorted(groups, key=lambda group: not group.baseline)
