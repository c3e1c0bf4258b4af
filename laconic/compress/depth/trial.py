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
    measured: dict[tuple[Cut, ...], Mapping[Replacement, Divergences]] = field(default_factory=dict)

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

    def divergence(self, cuts: Sequence[Cut]) -> float:
        """KL(original ‖ without `cuts`) with what is `kept` in their place, nats per prediction."""
        return self.each(cuts)[self.kept(cuts)].mean

    def kept(self, cuts: Sequence[Cut]) -> Replacement:
        """The replacement where it diverges less than nothing does, on rows that it was not fitted on."""
        found = self.each(cuts)
        if not self.apart or found[self.replacement].beats(found["nothing"]):
            return self.replacement
        return "nothing"

    def each(self, cuts: Sequence[Cut]) -> Mapping[Replacement, Divergences]:
        """By what stands in the place of `cuts`: the replacement, and nothing where the two can be told apart."""
        key = tuple(cuts)
        if key not in self.measured:
            kinds: set[Replacement] = {self.replacement, "nothing"} if self.apart else {self.replacement}
            self.measured[key] = {
                kind: reduce(add, [self._on(side, cuts, kind) for side in self.sides]) for kind in sorted(kinds)
            }
        return self.measured[key]

    def _on(self, side: Side, cuts: Sequence[Cut], kind: Replacement) -> Divergences:
        twin = self.lm.twin()
        take_out(twin, cuts, None if kind == "nothing" else side.fits, self.lm)
        return side.judge.each(twin)


def _halves(data: Calibration) -> tuple[list[Batch], list[Batch]]:
    """The batches in two halves, or where these are too few for cross-validation the rows."""
    every = data.batches
    if len(every) >= 2 * FOLDS:
        return every[::2], every[1::2]
    here, there = taken_apart(every, 0.5, data.seed, "shorten")
    return here, foldable(there)
