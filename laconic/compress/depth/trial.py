"""How far a model would be from what it is without some cuts, on calibration rows that nothing was fitted on.

Maps that are fitted on some rows do better on these than on others, and two maps do better by more than one: measured
where they are fitted, many short runs would win against one long one. So where something stands for what is dropped it
is fitted on one half of the rows and measured on the other, and the other way round.

What brings the hidden states nearer to what they were can still take the predictions further away: the mean that a
block adds may be that of a few tokens. So cuts with nothing in their place are measured too, and what was fitted stays
out where it does not diverge less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

from laconic.calibrate import Calibration
from laconic.calibrate.anchor import FOLDS
from laconic.calibrate.held_out import count_rows, foldable, taken_apart
from laconic.compress.depth.cuts import Cut
from laconic.compress.depth.fits import Fits
from laconic.compress.depth.surgery import Replacement, fits_for, take_out
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.model import Batch, LanguageModel


@dataclass(frozen=True)
class Side:
    """What stands in the place of cuts, as fitted on some rows, and how far a changed model is on others."""

    fits: Fits | None
    judge: KLMetric


@dataclass(frozen=True)
class Measured:
    """The divergences of a model without some cuts, by what stands in their place.

    Args:
        replacement: the one to use: the one that was asked for, if it diverges less than `nothing` does.
        divergences: of each replacement that was measured.
    """

    replacement: Replacement
    divergences: Mapping[Replacement, Divergences]

    @property
    def mean(self) -> float:
        """KL(original ‖ changed) with `replacement`, nats per prediction."""
        return self.divergences[self.replacement].mean


@dataclass(frozen=True)
class Trial:
    """A model whose cuts are tried out.

    replacement: what is to stand in their place.
    apart:       whether the rows that judge are others than those that are fitted on.
    measured:    what was found of cuts already, so that another number to drop asks only for what is new.
    """

    lm: LanguageModel
    data: Calibration
    replacement: Replacement
    sides: Sequence[Side]
    apart: bool
    measured: dict[tuple[Cut, ...], Measured] = field(default_factory=dict)

    @classmethod
    def of(cls, lm: LanguageModel, data: Calibration, replacement: Replacement, longest: int) -> "Trial":
        """Of runs of up to `longest`, with that `replacement`."""

        def side(here: Sequence[Batch], there: Sequence[Batch]) -> Side:
            return Side(fits_for(lm, replace(data, batches=list(here)), replacement, longest), KLMetric(lm, there))

        every = data.batches
        if replacement == "nothing" or count_rows(every) < 2 * FOLDS:
            return cls(lm, data, replacement, [side(every, every)], apart=False)
        here, there = _halves(data)
        return cls(lm, data, replacement, [side(here, there), side(there, here)], apart=True)

    def measure(self, cuts: Sequence[Cut]) -> Measured:
        """Measure KL(original ‖ without `cuts`) on rows that nothing was fitted on, for each possible replacement.

        Where such rows are missing the replacement is not compared with nothing in its place.
        """
        key = tuple(cuts)
        if key not in self.measured:
            kinds: set[Replacement] = {self.replacement, "nothing"} if self.apart else {self.replacement}
            divergences: dict[Replacement, Divergences] = {}
            for kind in sorted(kinds):
                parts: list[Divergences] = []
                for side in self.sides:
                    twin = self.lm.shallow_copy()
                    take_out(twin, cuts, None if kind == "nothing" else side.fits, self.lm)
                    parts.append(side.judge.each(twin))
                divergences[kind] = reduce(add, parts)
            better = not self.apart or divergences[self.replacement].beats(divergences["nothing"])
            self.measured[key] = Measured(self.replacement if better else "nothing", divergences)
        return self.measured[key]


def _halves(data: Calibration) -> tuple[list[Batch], list[Batch]]:
    """The batches in two halves, or where these are too few for cross-validation the rows."""
    every = data.batches
    if len(every) >= 2 * FOLDS:
        return every[::2], every[1::2]
    here, there = taken_apart(every, 0.5, data.seed, "shorten")
    return here, foldable(there)
