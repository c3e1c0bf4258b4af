"""Metrics of a table of scores, one line for each row of data: shares, means of means, and bootstrap intervals.

An interval is that of the percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13), which works for any
function of the table. A mean over groups of rows is a weighted mean over the rows. Resampled rows keep their weights,
so that an interval does not depend on which small group a resample misses (the ratio estimator of Hájek 1971).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.calibrate.corpus import Corpus

Scores = Float[np.ndarray, "rows columns"]
"""What a task measured of each row, in columns of the task's own."""
Metric = Callable[[Scores], float]
RowFunction = Callable[[Scores], Float[np.ndarray, " rows"]]
"""What each row contributes to a mean."""

RESAMPLES = 1000
MIN_RESAMPLES = 200
MAX_RESAMPLED_ROWS = 10_000_000
"""Rows in all resamples together. A larger table gets fewer resamples; its intervals are narrow anyway."""


@dataclass(frozen=True)
class Share:
    """The metric of rows that are each right or wrong: the share of rows that are right.

    Args:
        right: for a table of scores, whether each row is right.

    Example:
        >>> accuracy = Share(lambda scores: scores[:, 0] == scores[:, 1])
        >>> accuracy(np.array([[0, 0], [1, 0], [1, 1], [0, 0]]))
        0.75
    """

    right: Callable[[Scores], Bool[np.ndarray, " rows"]]

    def __call__(self, table: Scores) -> float:
        return float(np.mean(self.right(table)))


@dataclass(frozen=True)
class SubsetMetric:
    """A metric over some of the rows, such as those of one group; the other rows never change its value.

    Args:
        metric: the metric, of the whole table.
        counted: for a table of scores, which of its rows the metric uses.
    """

    metric: Metric
    counted: Callable[[Scores], Bool[np.ndarray, " rows"]]

    def __call__(self, table: Scores) -> float:
        return self.metric(table)


def rows_counted(metric: Metric, table: Scores) -> Bool[np.ndarray, " rows"]:
    """Which rows of a table the metric uses: all of them, unless it is a `SubsetMetric`.

    Args:
        metric: of a table of scores.
        table: scores.
    """
    return metric.counted(table) if isinstance(metric, SubsetMetric) else np.ones(len(table), dtype=bool)


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % confidence interval.

    Args:
        value: the metric of all rows.
        low: the 2.5 % quantile of the metric over the resamples.
        high: the 97.5 % quantile.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The three numbers by their names."""
        return asdict(self)


def interval(metric: Metric, table: Scores, seed: int = 0) -> Interval:
    """A metric of a table of scores, with its bootstrap interval.

    Args:
        metric: any function of a table of scores.
        table: one line for each row of data.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        The metric of the table, and the bounds that hold it in 95 % of the resamples.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Example:
        >>> scores = np.array([[1.0], [0.0], [1.0], [1.0]] * 25)
        >>> found = interval(lambda table: float(table[:, 0].mean()), scores)
        >>> found.value
        0.75
        >>> 0.6 < found.low < 0.75 < found.high < 0.9
        True
    """
    values = [metric(table[rows]) for rows in resample_rows(len(table), seed)]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(metric(table), float(low), float(high))


def resample_rows(rows: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each bootstrap resample.

    Args:
        rows: of the table; each resample draws as many, with replacement.
        seed: of the draws.

    Yields:
        (rows,) row numbers, `n_resamples(rows)` times.
    """
    generator = np.random.default_rng(seed)
    for _ in range(n_resamples(rows)):
        yield generator.integers(rows, size=rows)


def n_resamples(rows: int) -> int:
    """How many bootstrap resamples a table gets.

    Args:
        rows: of the table.

    Example:
        >>> n_resamples(872), n_resamples(40_000)
        (1000, 250)
    """
    return min(RESAMPLES, max(MIN_RESAMPLES, MAX_RESAMPLED_ROWS // rows))


def macro_weights(groups: Sequence[str]) -> Float[Tensor, " rows"]:
    """The weight of each row in the mean of means over nested groups.

    Args:
        groups: the group of each row; slashes part the names of its levels, the outermost first.

    Returns:
        Weights that sum to 1: each group counts as much as the others beside it, each row as much as its neighbours.

    Example:
        >>> macro_weights(["a", "a", "b"]).tolist()
        [0.25, 0.25, 0.5]
    """
    paths = [tuple(group.split("/")) for group in groups]
    members: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in set(paths):
        for depth, name in enumerate(path):
            members[path[:depth]].add(name)
    rows = Counter(paths)
    weights = {path: 1 / (rows[path] * prod(len(members[path[:at]]) for at in range(len(path)))) for path in rows}
    return torch.tensor([weights[path] for path in paths], dtype=torch.float64)


def weighted_mean(value: RowFunction, weight: int, only: tuple[int, int] | None = None) -> SubsetMetric:
    """The metric that is the weighted mean of `value` over rows.

    Args:
        value: what each row of a table contributes.
        weight: the column of the weights.
        only: (column, number): only rows that have this number in this column count; None for all rows.

    Returns:
        A metric that is 0 where no such row was drawn.

    Example:
        >>> mean = weighted_mean(lambda scores: scores[:, 0], weight=1)
        >>> mean(np.array([[1.0, 0.75], [0.0, 0.25]]))
        0.75
    """

    def metric(table: Scores) -> float:
        weights = weights_of(table)
        total = weights.sum()
        return float(weights @ value(table) / total) if total else 0.0

    def weights_of(table: Scores) -> Float[np.ndarray, " rows"]:
        return table[:, weight] if only is None else table[:, weight] * (table[:, only[0]] == only[1])

    return SubsetMetric(metric, lambda table: weights_of(table) > 0)


def limit_evenly(corpus: Corpus, rows: int | None) -> Corpus:
    """The corpus cut to `rows` rows that are spread evenly over its groups.

    Args:
        corpus: rows with a `group`.
        rows: how many to keep; None for all.

    Returns:
        The first rows of each group, as many of each as of the others where they have so many, in the order of
        `corpus`.
    """
    if rows is None:
        return corpus
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    for index, example in enumerate(corpus.examples):
        turns.append((seen[example.group], index))
        seen[example.group] += 1
    chosen = sorted(index for _, index in sorted(turns)[:rows])
    return replace(corpus, examples=tuple(corpus.examples[index] for index in chosen))
