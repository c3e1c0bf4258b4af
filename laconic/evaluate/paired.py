"""Two models on the same rows: how much a figure changed, whether that may be chance, and what would have shown.

The interval is the bootstrap's, with both models resampled together, which takes out what makes a row hard for both
(Efron and Tibshirani 1993, chapter 16). The probability is that of a test. Of rows that are right or wrong it is
McNemar's (Psychometrika 12, 1947, pages 153-157), in its exact form however many they are: of the rows that only one
of the models has right, each is as likely to be the one's as the other's. Of any other metric it is that of approximate
randomization (Noreen 1989, chapter 2; Yeh 2000, https://aclanthology.org/C00-2137): how often a change as large comes
about when the two models' lines are exchanged row by row at random, or, of few rows, in every way that there is.
Neither takes chance for a change in more than p of all cases, however few rows there are; bootstrapped probabilities
do.

Of n rows neither gives a p below 2 / 2ⁿ, whatever the change (the minimum attainable p of R. Tarone, Biometrics 46,
1990, pages 515-522). Where that is 0.05 or more the rows cannot tell a change from chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np
from jaxtyping import Bool
from scipy.stats import binom, norm

from laconic.evaluate.intervals import Metric, Share, Table, counted, resamples, resamples_of

SIGNIFICANT = 0.05
POWER = 0.8
FEWEST = 6
"""Rows that must differ for p below 0.05: of five that all speak for one model, p is 2 / 2⁵ = 0.0625."""
DETECTABLE = float(norm.ppf(1 - SIGNIFICANT / 2) + norm.ppf(POWER))
"""2.80 standard errors."""
ROUNDING = 1e-9
"""What two sums of the same numbers differ by at most, as a fraction."""


class Verdict(StrEnum):
    """What a change says."""

    CHANGE = "a real change"
    NOISE = "noise"
    CANNOT_TELL = "cannot tell"


def verdict(p: float, least_p: float) -> Verdict:
    """What a change of this `p` says, on rows that can give `least_p` at the least.

    Noise is what luck brings about in a case of twenty or more, where the rows could have shown a change.
    """
    if least_p >= SIGNIFICANT:
        return Verdict.CANNOT_TELL
    return Verdict.CHANGE if p < SIGNIFICANT else Verdict.NOISE


def least_p_of(rows: int) -> float:
    """The smallest two-sided p of a paired test on so many rows: of all 2ⁿ exchanges two are as extreme as can be."""
    return min(1.0, 2.0 ** (1 - rows))


@dataclass(frozen=True)
class Difference:
    """How much a figure changed.

    p:          two-sided probability of a change at least as large when there is none.
    least_p:    the smallest p that so many rows give; from 0.05 on they cannot tell any change from chance.
    detectable: the smallest change that these rows show with p < 0.05 in four cases of five (Card et al. 2020,
                https://aclanthology.org/2020.emnlp-main.745): 2.80 standard errors of the change. None where no
                change could: there are fewer than six rows, or nothing by which to tell the spread of the change.
    """

    value: float
    low: float
    high: float
    p: float
    least_p: float
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
    low, high = (float(bound) for bound in np.quantile(changes, (0.025, 0.975)))
    if isinstance(metric, Share):
        won, lost = discordant(metric, table, reference)
        shown = _shown(won + lost, len(table))
        return Difference(value, low, high, mcnemar(won, lost), least_p_of(len(table)), shown)
    among = counted(metric, table) | counted(metric, reference)
    rows = int(among.sum())
    error = float(np.std(changes))
    shows = rows >= FEWEST and error > 0
    p = _randomized(metric, table, reference, among, seed)
    return Difference(value, low, high, p, least_p_of(rows), DETECTABLE * error if shows else None)


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


def _randomized(metric: Metric, table: Table, reference: Table, among: Bool[np.ndarray, " rows"], seed: int) -> float:
    """How often a change as large comes about when lines of the rows `among` are exchanged."""
    exact = 2 ** int(among.sum()) <= resamples_of(len(table))
    swaps = _every_swap(among) if exact else _random_swaps(among, seed)
    shuffled = np.array(
        [
            metric(np.where(swap, reference, table)) - metric(np.where(swap, table, reference))
            for swap in (swap[:, None] for swap in swaps)
        ]
    )
    value = metric(table) - metric(reference)
    scale = max(float(np.abs(shuffled).max()), abs(value))
    as_large = int(np.sum(np.abs(shuffled) >= abs(value) - ROUNDING * scale))
    # The observed tables are one of the exchanges that are possible: the first of all, one more than those drawn.
    return as_large / len(shuffled) if exact else (1 + as_large) / (1 + len(shuffled))


def _every_swap(among: Bool[np.ndarray, " rows"]) -> Iterator[Bool[np.ndarray, " rows"]]:
    """Every choice of rows to exchange, none of them first."""
    for chosen in product((False, True), repeat=int(among.sum())):
        swap = np.zeros(len(among), dtype=bool)
        swap[among] = chosen
        yield swap


def _random_swaps(among: Bool[np.ndarray, " rows"], seed: int) -> Iterator[Bool[np.ndarray, " rows"]]:
    """About half of the rows, drawn anew each time."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples_of(len(among))):
        yield generator.random(len(among)) < 0.5
