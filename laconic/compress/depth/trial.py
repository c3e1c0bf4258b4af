"""Cuts taken out of a model, with what stands in their place.

How far a model would be from what it is without some cuts, on calibration rows that nothing was fitted on.

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
from typing import Literal

from laconic.calibrate import Calibration
from laconic.calibrate.anchor import FOLDS
from laconic.calibrate.calibration import count_rows, split_for_folds, split_held_out
from laconic.compress.depth.cuts import Cut, dropped_blocks, subblock_at
from laconic.compress.depth.fitting import MapFitter, find_map_place, no_place_error
from laconic.compress.depth.folding import check_takes, fold
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.model import Batch, LanguageModel
from laconic.model.depth import drop_blocks
from laconic.model.layers import Layers, consecutive_ranges, find_layers
from laconic.model.layers import get_layers as stack_named
from laconic.model.subblocks import drop_subblock, last_writer

Replacement = Literal["nothing", "bias", "linear"]


def make_fitter(
    lm: LanguageModel, data: Calibration | None, replace: Replacement, longest: int = 1
) -> MapFitter | None:
    """Of `lm`, for runs of up to `longest`; None where nothing is to stand for them."""
    return None if replace == "nothing" or data is None else MapFitter(lm, data, replace == "linear", longest)


def check_seats(lm: LanguageModel, cuts: Sequence[Cut], data: Calibration) -> None:
    """Raise UserError where nothing can stand for some run of `cuts`."""
    for layers in find_layers(lm):
        for run in consecutive_ranges(dropped_blocks(cuts, layers.name)):
            if find_map_place(lm, layers, run.start, data.batches[0]) is None:
                raise no_place_error(lm, run.start)


def check_maps(lm: LanguageModel, cuts: Sequence[Cut] | None) -> None:
    """Raise UserError where a linear map for some run of `cuts` does not fit into what writes to the stream before it;
    None for any blocks. What follows a norm of the whole stream always fits."""
    for layers in find_layers(lm):
        if layers.shared or layers.stack.other_linears:
            continue
        every = range(len(layers))
        starts = every if cuts is None else [run.start for run in consecutive_ranges(dropped_blocks(cuts, layers.name))]
        for start in starts:
            if start and not _ends_in_norm(lm, layers, start - 1):
                check_takes(lm, last_writer(lm, layers, start - 1))


def _ends_in_norm(lm: LanguageModel, layers: Layers, index: int) -> bool:
    """Whether the stream passes a norm last; as far as the class has a name for that, as it does for the matrices."""
    block, before = lm.model.get_submodule(layers.paths[index]), layers.stack.pre_norm_flag
    return layers.depth.last_norm is not None and not (before is not None and getattr(block, before))


def drop_cuts(
    lm: LanguageModel, cuts: Sequence[Cut], fits: MapFitter | None, original: LanguageModel
) -> dict[str, int]:
    """Drop `cuts` from `lm`, in place, run by run in forward order; `original` is what it was, and is not changed.

    `fits` says what stands in their place, None for nothing.

    Returns the bytes of matrices that were added, by the path of the module that holds them.

    Raises:
        UserError: the cuts cannot go, or nothing can take their place.
    """
    parts = [cut for cut in cuts if cut.part is not None]
    means = fits.means(parts) if fits is not None else {}
    before = find_layers(original)
    for cut in parts:
        drop_subblock(lm, subblock_at(lm, stack_named(lm, cut.stack), cut), means.get(cut))
    for layers in before:
        drop_blocks(lm, stack_named(lm, layers.name), dropped_blocks(cuts, layers.name))
    added: dict[str, int] = {}
    # Up to the first run the hidden states are those of the original.
    whole = not parts
    for layers in before if fits is not None else ():
        gone = 0
        for run in consecutive_ranges(dropped_blocks(cuts, layers.name)):
            assert fits is not None
            if whole:
                seat, (T, b) = fits.of(layers, run)
            else:
                here = stack_named(lm, layers.name)
                seat, ((T, b),) = fits.fit(lm, here, run.start - gone, layers.paths[run.stop - 1 : run.stop])
            added[seat.path] = added.get(seat.path, 0) + fold(lm, seat.path, T, b)
            gone, whole = gone + len(run), False
    return added


@dataclass(frozen=True)
class Side:
    """What stands in the place of cuts, as fitted on some rows, and how far a changed model is on others."""

    fits: MapFitter | None
    metric: KLMetric


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
            return Side(make_fitter(lm, replace(data, batches=list(here)), replacement, longest), KLMetric(lm, there))

        every = data.batches
        if replacement == "nothing" or count_rows(every) < 2 * FOLDS:
            return cls(lm, data, replacement, [side(every, every)], apart=False)
        here, there = _split_batches(data)
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
                    shallow_copy = self.lm.shallow_copy()
                    drop_cuts(shallow_copy, cuts, None if kind == "nothing" else side.fits, self.lm)
                    parts.append(side.metric.each(shallow_copy))
                divergences[kind] = reduce(add, parts)
            better = not self.apart or divergences[self.replacement].beats(divergences["nothing"])
            self.measured[key] = Measured(self.replacement if better else "nothing", divergences)
        return self.measured[key]


def _split_batches(data: Calibration) -> tuple[list[Batch], list[Batch]]:
    """The batches in two halves, or where these are too few for cross-validation the rows."""
    every = data.batches
    if len(every) >= 2 * FOLDS:
        return every[::2], every[1::2]
    here, there = split_held_out(every, 0.5, data.seed, "shorten")
    return here, split_for_folds(there)
