"""Metrics of a table of scores (one line for each row of data): shares, means of means, and bootstrap intervals.

Intervals are computed by the percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13), which works for
any function of the table. A mean over groups of rows is computed as a weighted mean over rows. Resampled rows keep
their weights, so that a resample without any row of a small group changes little (the ratio estimator of Hájek 1971).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.calibrate.corpus import Corpus

Scores = Float[np.ndarray, "rows columns"]
"""(rows, columns) scores of the rows of a task; each task defines its columns."""
Metric = Callable[[Scores], float]
RowFunction = Callable[[Scores], Float[np.ndarray, " rows"]]
"""Maps a table of scores to the value that each row contributes to a mean."""

RESAMPLES = 1000
MIN_RESAMPLES = 200
MAX_RESAMPLED_ROWS = 10_000_000
"""The total number of rows in all resamples. A larger table gets fewer resamples; its intervals are narrow anyway."""


@dataclass(frozen=True)
class Share:
    """The share of rows that are right.

    Args:
        right: maps a table of scores to whether each row is right.

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
    """A metric that depends only on some of the rows, such as the rows of one group.

    Args:
        metric: a function of the whole table.
        counted: maps a table of scores to whether the metric uses each row.
    """

    metric: Metric
    counted: Callable[[Scores], Bool[np.ndarray, " rows"]]

    def __call__(self, table: Scores) -> float:
        return self.metric(table)


def rows_counted(metric: Metric, table: Scores) -> Bool[np.ndarray, " rows"]:
    """Whether a metric uses each row of a table; all of them, unless it is a `SubsetMetric`.

    Args:
        metric: a metric of the table.
        table: (rows, columns) scores.
    """
    return metric.counted(table) if isinstance(metric, SubsetMetric) else np.ones(len(table), dtype=bool)


@dataclass(frozen=True)
class Interval:
    """The value of a metric with its 95 % confidence interval.

    Args:
        value: the metric of all rows.
        low: the 2.5 % quantile of the metric over the resamples.
        high: the 97.5 % quantile.
    """

    value: float
    low: float
    high: float


def interval(metric: Metric, table: Scores, seed: int = 0) -> Interval:
    """Compute a metric and its 95 % bootstrap interval.

    Args:
        metric: any function of a table of scores.
        table: one line for each row of data.
        seed: the random seed of the resampling; the same seed gives the same interval.

    Returns:
        The metric of the table, and the 2.5 % and 97.5 % quantiles of the metric over the resamples.

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
    """Draw the row indices of each bootstrap resample.

    Args:
        rows: the number of rows in the table; each resample draws this number, with replacement.
        seed: the random seed.

    Yields:
        (rows,) indices, `n_resamples(rows)` times.
    """
    generator = np.random.default_rng(seed)
    for _ in range(n_resamples(rows)):
        yield generator.integers(rows, size=rows)


def n_resamples(rows: int) -> int:
    """The number of bootstrap resamples for a table.

    Args:
        rows: the number of rows in the table.

    Example:
        >>> n_resamples(872), n_resamples(40_000)
        (1000, 250)
    """
    return min(RESAMPLES, max(MIN_RESAMPLES, MAX_RESAMPLED_ROWS // rows))


def macro_weights(groups: Sequence[str]) -> Float[Tensor, " rows"]:
    """The weight of each row in the mean of means over nested groups.

    Args:
        groups: the group of each row as a path of levels separated by slashes, the outermost first.

    Returns:
        (rows,) weights with sum 1. Groups with the same parent have equal weights, as have the rows of a group.

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
    weights = {path: 1 / (rows[path] * prod(len(members[path[:depth]]) for depth in range(len(path)))) for path in rows}
    return torch.tensor([weights[path] for path in paths], dtype=torch.float64)


def weighted_mean(value: RowFunction, weight: int, only: tuple[int, int] | None = None) -> SubsetMetric:
    """Make a metric that is the weighted mean of a value over rows.

    Args:
        value: maps a table to the value of each row.
        weight: the index of the column with the weights.
        only: (column, number): use only the rows with this number in this column; None for all rows.

    Returns:
        The metric. It is 0 for a table without such rows.

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


def metrics_by_group(
    values: Mapping[str, RowFunction], weight: int, column: int, groups: Sequence[str]
) -> dict[str, Metric]:
    """Make weighted means over all rows, and over the rows of each group if there are several groups.

    Args:
        values: maps a table to the value of each row, by the name of the metric.
        weight: the index of the column with the weights.
        column: the index of the column with the number of the group.
        groups: the names of the groups, in the order of their numbers.

    Returns:
        The metrics by name; `NAME/GROUP` is the metric `NAME` over the rows of one group.

    Example:
        >>> list(metrics_by_group({"mean": lambda scores: scores[:, 0]}, 1, 2, ["a", "b"]))
        ['mean', 'mean/a', 'mean/b']
    """
    metrics: dict[str, Metric] = {name: weighted_mean(value, weight) for name, value in values.items()}
    if len(groups) > 1:
        for number, group in enumerate(groups):
            metrics |= {
                f"{name}/{group}": weighted_mean(value, weight, (column, number)) for name, value in values.items()
            }
    return metrics


def means_by_group(groups: Sequence[str], values: Iterable[float]) -> dict[str, tuple[int, float]]:
    """The number of rows and the mean value of each group, in the order of the first row of each.

    Args:
        groups: the group of each row.
        values: the value of each row.

    Example:
        >>> means_by_group(["a", "b", "a"], [1.0, 0.0, 0.0])
        {'a': (2, 0.5), 'b': (1, 0.0)}
    """
    members: dict[str, list[float]] = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        members[group].append(value)
    return {group: (len(rows), sum(rows) / len(rows)) for group, rows in members.items()}


def limit_evenly(corpus: Corpus, rows: int | None) -> Corpus:
    """Reduce a corpus to a number of rows that are spread evenly over its groups.

    Args:
        corpus: rows with a `group`.
        rows: the number of rows to keep; None for all.

    Returns:
        The first rows of each group, in the order of `corpus`. All groups have the same number of rows, unless a group
        is too small.
    """
    if rows is None:
        return corpus
    counts: Counter[str] = Counter()
    order: list[tuple[int, int]] = []
    for index, example in enumerate(corpus.examples):
        order.append((counts[example.group], index))
        counts[example.group] += 1
    chosen = sorted(index for _, index in sorted(order)[:rows])
    return replace(corpus, examples=tuple(corpus.examples[index] for index in chosen))
