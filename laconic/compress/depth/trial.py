"""How far a model would be from what it is without some cuts, on calibration rows that nothing was fitted on.

Maps that are fitted on some rows do better on these than on others, and two maps do better by more than one: measured
where they are fitted, many short runs would win against one long one. So where something stands for what is dropped it
is fitted on one half of the batches and measured on the other, and the other way round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from laconic.calibrate import Calibration
from laconic.calibrate.anchor import FOLDS
from laconic.compress.depth.cuts import Cut
from laconic.compress.depth.fits import Fits
from laconic.compress.depth.surgery import Replacement, fits_for, take_out
from laconic.compress.judge import Judge
from laconic.model import Batch, LanguageModel


@dataclass(frozen=True)
class Side:
    """What stands in the place of cuts, as fitted on some rows, and how far a changed model is on others."""

    fits: Fits | None
    judge: Callable[[LanguageModel], float]


@dataclass(frozen=True)
class Trial:
    """A model whose cuts are tried out.

    measured: what was found of cuts already, so that another number to drop asks only for what is new.
    """

    lm: LanguageModel
    data: Calibration
    sides: Sequence[Side]
    measured: dict[tuple[Cut, ...], float] = field(default_factory=dict)

    @classmethod
    def of(cls, lm: LanguageModel, data: Calibration, replacement: Replacement, longest: int) -> "Trial":
        """Of runs of up to `longest`, with that `replacement`."""

        def side(here: Sequence[Batch], there: Sequence[Batch]) -> Side:
            return Side(fits_for(lm, replace(data, batches=list(here)), replacement, longest), Judge(lm, there))

        every = data.batches
        # A half that is to be fitted on is itself halved there.
        if replacement == "nothing" or len(every) < 2 * FOLDS:
            return cls(lm, data, [side(every, every)])
        return cls(lm, data, [side(every[::2], every[1::2]), side(every[1::2], every[::2])])

    def divergence(self, cuts: Sequence[Cut]) -> float:
        """KL(original ‖ without `cuts`), nats per prediction."""
        key = tuple(cuts)
        if key not in self.measured:
            self.measured[key] = fmean(self._on(side, cuts) for side in self.sides)
        return self.measured[key]

    def _on(self, side: Side, cuts: Sequence[Cut]) -> float:
        twin = self.lm.twin()
        take_out(twin, cuts, side.fits, self.lm)
        return side.judge(twin)
