"""Paired comparison of two models on the same rows: the change of a metric, its interval, and its p-value.

The interval is computed by a bootstrap that resamples the same rows for both models, which removes the common variation
due to hard and easy rows (Efron and Tibshirani 1993, chapter 16). The p-value comes from one of two tests:

- For a metric of rows that are right or wrong: the exact form of McNemar's test (Psychometrika 12, 1947, pages
  153-157). Under the null hypothesis, a row that only one model has right belongs to either model with probability ½.
- For any other metric: approximate randomization (Noreen 1989, chapter 2; Yeh 2000,
  https://aclanthology.org/C00-2137). The p-value is the frequency of a change at least as large when the scores of the
  two models are exchanged in random rows; for few rows, in all subsets of rows.

Both tests are valid for any number of rows; bootstrapped p-values are not. With n rows neither gives a p below 2 / 2ⁿ,
whatever the change (the minimum attainable p of Tarone, Biometrics 46, 1990, pages 515-522). Where that is 0.05 or
more, no change can be significant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np
from jaxtyping import Bool
from scipy.stats import binom, norm

from laconic.evaluate.metrics import Metric, Scores, Share, n_resamples, resample_rows, rows_counted

SIGNIFICANT = 0.05
POWER = 0.8
MIN_DISCORDANT = 6
"""The least number of differing rows for p < 0.05: with five rows that all favour one model, p is 2 / 2⁵ = 0.0625."""
DETECTABLE = float(norm.ppf(1 - SIGNIFICANT / 2) + norm.ppf(POWER))
"""A change of 2.80 standard errors is significant with the probability `POWER`."""
ROUNDING = 1e-9
"""The relative difference up to which two sums of the same numbers count as equal."""


class Verdict(StrEnum):
    """The interpretation of a change against the original."""

    CHANGE = "a real change"
    NOISE = "noise"
    CANNOT_TELL = "cannot tell"


def verdict(p: float, least_p: float) -> Verdict:
    """Whether a change is significant.

    Args:
        p: the p-value of the change.
        least_p: the smallest p-value that is possible with these rows, from `min_attainable_p`.

    Returns:
        `CANNOT_TELL` if no change on these rows can be significant, else `CHANGE` or `NOISE`.

    Example:
        >>> verdict(0.01, least_p=1e-9), verdict(0.4, least_p=1e-9), verdict(0.4, least_p=0.0625)
        (<Verdict.CHANGE: 'a real change'>, <Verdict.NOISE: 'noise'>, <Verdict.CANNOT_TELL: 'cannot tell'>)
    """
    if least_p >= SIGNIFICANT:
        return Verdict.CANNOT_TELL
    return Verdict.CHANGE if p < SIGNIFICANT else Verdict.NOISE


def min_attainable_p(rows: int) -> float:
    """The smallest two-sided p-value of a paired test: two of the 2ⁿ exchanges of n rows are the most extreme ones.

    Args:
        rows: the number of rows that can differ between the models.

    Example:
        >>> min_attainable_p(5), min_attainable_p(6)
        (0.0625, 0.03125)
    """
    return min(1.0, 2.0 ** (1 - rows))


@dataclass(frozen=True)
class Difference:
    """The change of a metric between a model and its original.

    Args:
        value: the metric of the model minus the metric of the original.
        low: lower bound of the 95 % interval of the change.
        high: upper bound.
        p: two-sided p-value: the probability of a change at least as large between equally good models.
        least_p: the smallest p-value that is possible with these rows. From 0.05 on, no change can be significant.
        detectable: the smallest change that is significant (p < 0.05) with probability 0.8 on these rows: 2.80 standard
            errors of the change (Card et al. 2020, https://aclanthology.org/2020.emnlp-main.745). None for fewer than
            six rows, or if the standard error is zero.
    """

    value: float
    low: float
    high: float
    p: float
    least_p: float
    detectable: float | None

    def to_json(self) -> dict[str, float]:
        """The change with its interval and its p-value, as JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p}


def difference(metric: Metric, table: Scores, reference: Scores, seed: int = 0) -> Difference:
    """Compare a metric between two models on the same rows, with a paired test.

    Args:
        metric: the metric. The test is McNemar's for a `Share`, else approximate randomization.
        table: (rows, columns) scores of the model.
        reference: (rows, columns) scores of the original on the same rows in the same order.
        seed: the random seed of the resampling and of the exchanges.

    Raises:
        ValueError: the tables have different numbers of rows.

    Reference:
        Efron and Tibshirani 1993, chapter 16; McNemar 1947; Noreen 1989, chapter 2.

    Example:
        >>> accuracy = Share(lambda scores: scores[:, 0] == 1)
        >>> original = np.array([[1.0]] * 90 + [[0.0]] * 10)
        >>> compressed = np.array([[1.0]] * 80 + [[0.0]] * 20)
        >>> change = difference(accuracy, compressed, original)
        >>> round(change.value, 2), round(change.p, 4)
        (-0.1, 0.002)
    """
    if len(table) != len(reference):
        raise ValueError(f"the tables must have the same rows; got {len(table)} and {len(reference)}")
    value = metric(table) - metric(reference)
    changes = np.array([metric(table[rows]) - metric(reference[rows]) for rows in resample_rows(len(table), seed)])
    low, high = (float(bound) for bound in np.quantile(changes, (0.025, 0.975)))
    if isinstance(metric, Share):
        won, lost = count_discordant(metric, table, reference)
        # The change that this number of differing rows can show; at least six rows must differ.
        detectable = min(1.0, max(MIN_DISCORDANT, DETECTABLE * (won + lost) ** 0.5) / len(table))
        if len(table) < MIN_DISCORDANT:
            detectable = None
        return Difference(value, low, high, mcnemar_p(won, lost), min_attainable_p(len(table)), detectable)
    counted = rows_counted(metric, table) | rows_counted(metric, reference)
    rows = int(counted.sum())
    error = float(np.std(changes))
    detectable = DETECTABLE * error if rows >= MIN_DISCORDANT and error > 0 else None
    p = _randomization_p(metric, table, reference, counted, seed)
    return Difference(value, low, high, p, min_attainable_p(rows), detectable)


def count_discordant(metric: Share, table: Scores, reference: Scores) -> tuple[int, int]:
    """Count the rows that only one of two models has right.

    Args:
        metric: determines which rows are right.
        table: scores of the model.
        reference: scores of the original, on the same rows.

    Returns:
        The number of rows that are right only in `table`, and the number that are right only in `reference`.

    Example:
        >>> right = Share(lambda scores: scores[:, 0] == 1)
        >>> count_discordant(right, np.array([[1.0], [0.0], [1.0]]), np.array([[0.0], [0.0], [1.0]]))
        (1, 0)
    """
    ours, theirs = metric.right(table), metric.right(reference)
    return int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))


def mcnemar_p(won: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test: 2 P[B ≤ min(won, lost)] with B binomial(won + lost, ½), at most 1.

    Args:
        won: the number of rows that only the first model has right.
        lost: the number of rows that only the second model has right.

    Reference:
        McNemar, Psychometrika 12, 1947, pages 153-157.

    Example:
        >>> mcnemar_p(won=0, lost=6)
        0.03125
        >>> mcnemar_p(won=5, lost=5)
        1.0
    """
    return min(1.0, 2 * float(binom.cdf(min(won, lost), won + lost, 0.5)))


def _randomization_p(
    metric: Metric, table: Scores, reference: Scores, counted: Bool[np.ndarray, " rows"], seed: int
) -> float:
    """The p-value of approximate randomization; the rows `counted` are exchanged (Noreen 1989, chapter 2)."""
    exact = 2 ** int(counted.sum()) <= n_resamples(len(table))
    swaps = _all_swaps(counted) if exact else _random_swaps(counted, seed)
    shuffled = np.array(
        [
            metric(np.where(swap, reference, table)) - metric(np.where(swap, table, reference))
            for swap in (swap[:, None] for swap in swaps)
        ]
    )
    value = metric(table) - metric(reference)
    scale = max(float(np.abs(shuffled).max()), abs(value))
    as_large = int(np.sum(np.abs(shuffled) >= abs(value) - ROUNDING * scale))
    # The observed tables count as one exchange. They are among all exchanges, but not among the random ones.
    return as_large / len(shuffled) if exact else (1 + as_large) / (1 + len(shuffled))


def _all_swaps(counted: Bool[np.ndarray, " rows"]) -> Iterator[Bool[np.ndarray, " rows"]]:
    """All subsets of rows to exchange, beginning with the empty one."""
    for chosen in product((False, True), repeat=int(counted.sum())):
        swap = np.zeros(len(counted), dtype=bool)
        swap[counted] = chosen
        yield swap


def _random_swaps(counted: Bool[np.ndarray, " rows"], seed: int) -> Iterator[Bool[np.ndarray, " rows"]]:
    """Random subsets with about half of the rows."""
    generator = np.random.default_rng(seed)
    for _ in range(n_resamples(len(counted))):
        yield generator.random(len(counted)) < 0.5
