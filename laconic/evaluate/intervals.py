"""How sure a figure is: the percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13).

A metric is a function of a table with one line for each row that was judged, so any metric can be resampled.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float

Table = Float[np.ndarray, "rows columns"]
Metric = Callable[[Table], float]

RESAMPLES = 1000
FEWEST_RESAMPLES = 200
LINES = 10_000_000
"""How many lines are resampled at most in all; a larger table, whose intervals are narrow anyway, gets fewer."""


@dataclass(frozen=True)
class Share:
    """The metric of rows that are each right or wrong: the share of those that are right."""

    right: Callable[[Table], Bool[np.ndarray, " rows"]]

    def __call__(self, table: Table) -> float:
        return float(np.mean(self.right(table)))


@dataclass(frozen=True)
class Among:
    """A metric in which only some rows have a part: those of one group, or those that have any tokens.

    counted: of a table, which rows those are; what the others hold changes nothing.
    """

    metric: Metric
    counted: Callable[[Table], Bool[np.ndarray, " rows"]]

    def __call__(self, table: Table) -> float:
        return self.metric(table)


def counted(metric: Metric, table: Table) -> Bool[np.ndarray, " rows"]:
    """The rows of `table` that have a part in `metric`."""
    return metric.counted(table) if isinstance(metric, Among) else np.ones(len(table), dtype=bool)


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds that hold it in 95 % of the resamples."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Its three numbers."""
        return asdict(self)


def interval(metric: Metric, table: Table, seed: int = 0) -> Interval:
    """`metric` of the table, with its 95 % interval."""
    values = [metric(table[rows]) for rows in resamples(len(table), seed)]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(metric(table), float(low), float(high))


def resamples(rows: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers drawn with replacement, one resample after the other."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples_of(rows)):
        yield generator.integers(rows, size=rows)


def resamples_of(rows: int) -> int:
    """How often a table of so many rows is drawn anew."""
    return min(RESAMPLES, max(FEWEST_RESAMPLES, LINES // rows))
