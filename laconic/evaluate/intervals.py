"""How sure a figure is: the percentile bootstrap over rows (Efron and Tibshirani 1993, chapters 13 and 16).

A metric is a function of a table with one line for each row that was judged, so any metric can be resampled. Two models
are compared on the same rows, resampled together, which takes out what makes a row hard for both.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, "rows columns"]
Metric = Callable[[Table], float]

RESAMPLES = 1000
FEWEST_RESAMPLES = 200
LINES = 10_000_000
"""How many lines are resampled at most in all; a larger table, whose intervals are narrow anyway, gets fewer."""


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds that hold it in 95 % of the resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much a figure changed; p: two-sided probability of a change at least as large when there is none."""

    value: float
    low: float
    high: float
    p: float


def interval(metric: Metric, table: Table, seed: int = 0) -> Interval:
    """`metric` of the table, with its 95 % interval."""
    values = [metric(table[rows]) for rows in _resamples(len(table), seed)]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(metric(table), float(low), float(high))


def difference(metric: Metric, table: Table, reference: Table, seed: int = 0) -> Difference:
    """`metric` of `table` minus that of `reference`, whose lines are the same rows judged from another model."""
    if len(table) != len(reference):
        raise ValueError(f"the tables must have the same rows; got {len(table)} and {len(reference)}")
    changes = np.array([metric(table[rows]) - metric(reference[rows]) for rows in _resamples(len(table), seed)])
    low, high = np.quantile(changes, (0.025, 0.975))
    # One is added because the observed sample is one of those that are possible; so p is never 0.
    tail = 1 + min((changes <= 0).sum(), (changes >= 0).sum())
    p = min(1.0, 2 * float(tail) / (1 + len(changes)))
    return Difference(metric(table) - metric(reference), float(low), float(high), p)


def _resamples(rows: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers drawn with replacement, one resample after the other."""
    generator = np.random.default_rng(seed)
    for _ in range(min(RESAMPLES, max(FEWEST_RESAMPLES, LINES // rows))):
        yield generator.integers(rows, size=rows)
