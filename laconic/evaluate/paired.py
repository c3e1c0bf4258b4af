"""Two models on the same rows: how much a figure changed, whether that may be chance, and what would have shown.

The interval is the bootstrap's, with both models resampled together, which takes out what makes a row hard for both
(Efron and Tibshirani 1993, chapter 16). The probability is that of a test. Of rows that are right or wrong it is
McNemar's (Psychometrika 12, 1947, pages 153-157), in its exact form however many they are: of the rows that only one
of the models has right, each is as likely to be the one's as the other's. Of any other metric it is that of approximate
randomization (Noreen 1989, chapter 2; Yeh 2000, https://aclanthology.org/C00-2137): how often a change as large comes
about when the two models' lines are exchanged row by row at random. Neither takes chance for a change in more than
p of all cases, however few rows there are; bootstrapped probabilities do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

from laconic.evaluate.intervals import Metric, Share, Table, resamples, resamples_of

SIGNIFICANT = 0.05
POWER = 0.8
FEWEST = 6
"""Rows that must differ for p below 0.05: of five that all speak for one model, p is 2 / 2⁵ = 0.0625."""
DETECTABLE = float(norm.ppf(1 - SIGNIFICANT / 2) + norm.ppf(POWER))
"""2.80 standard errors."""
ROUNDING = 1e-9
"""What two sums of the same numbers differ by at most, as a fraction."""


@dataclass(frozen=True)
class Difference:
    """How much a figure changed.

    p:          two-sided probability of a change at least as large when there is none.
    detectable: the smallest change that these rows show with p < 0.05 in four cases of five (Card et al. 2020,
                https://aclanthology.org/2020.emnlp-main.745): 2.80 standard errors of the change. None where no
                change could: there are fewer than six rows, or nothing by which to tell the spread of the change.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float | None

    def to_json(self) -> dict[str, float]:
        """The change and its p."""
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p}


def difference(metric: Metric, table: Table, reference: Table, seed: int = 0) -> Difference:
    """`metric` of `table` minus that of `reference`, whose lines are the same rows judged from another model."""
    if len(table) != len(reference):
        raise ValueError(f"the tables must have the same rows; got {len(table)} and {len(reference)}")
    value = metric(table) - metric(reference)
    changes = np.array([metric(table[rows]) - metric(reference[rows]) for rows in resamples(len(table), seed)])
    low, high = np.quantile(changes, (0.025, 0.975))
    if isinstance(metric, Share):
        won, lost = discordant(metric, table, reference)
        return Difference(value, float(low), float(high), mcnemar(won, lost), _shown(won + lost, len(table)))
    shuffled = np.array([metric(one) - metric(other) for one, other in _exchanged(table, reference, seed)])
    error = float(np.std(changes))
    shows = len(table) >= FEWEST and error > 0
    return Difference(value, float(low), float(high), _tail(shuffled, value), DETECTABLE * error if shows else None)


def discordant(metric: Share, table: Table, reference: Table) -> tuple[int, int]:
    """Rows that only `table` has right, and rows that only `reference` has."""
    ours, theirs = metric.right(table), metric.right(reference)
    return int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of so many rows won and lost: 2 P[B ≤ min(won, lost)] with B binomial(won + lost, ½)."""
    return min(1.0, 2 * float(binom.cdf(min(won, lost), won + lost, 0.5)))


def _shown(differ: int, rows: int) -> float | None:
    """The change of a share of `rows` that is detectable where `differ` rows, of whichever sign, differ."""
    return None if rows < FEWEST else min(1.0, max(FEWEST, DETECTABLE * differ**0.5) / rows)


def _exchanged(table: Table, reference: Table, seed: int) -> Iterator[tuple[Table, Table]]:
    """The two tables with the lines of about half of the rows exchanged."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples_of(len(table))):
        swap = generator.random(len(table))[:, None] < 0.5
        yield np.where(swap, reference, table), np.where(swap, table, reference)


def _tail(shuffled: np.ndarray, value: float) -> float:
    # One is added because the observed tables are one of the exchanges that are possible; so p is never 0.
    scale = max(float(np.abs(shuffled).max()), abs(value))
    as_large = int(np.sum(np.abs(shuffled) >= abs(value) - ROUNDING * scale))
    return (1 + as_large) / (1 + len(shuffled))
