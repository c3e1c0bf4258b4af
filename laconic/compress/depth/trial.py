"""Drop cuts from a model, fit their replacements, and measure the KL divergence that results.

A replacement (a map or a bias) has a lower error on the rows that it was fitted on than on other rows, and the
difference grows with the number of replacements. Measured on the same rows, many short runs would seem better than one
long run. Replacements are therefore fitted on one half of the calibration rows and measured on the other half, and vice
versa.

A replacement that brings the hidden states closer to the original can still make the predictions worse, for instance if
the mean output of a block is dominated by a few tokens. Dropping without a replacement is therefore measured too, and
the replacement is used only if its divergence is lower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Literal

from laconic.calibrate import Calibration
from laconic.calibrate.anchor import FOLDS, count_rows, split_for_folds, split_held_out
from laconic.compress.depth.cuts import Cut, dropped_blocks, subblock_at
from laconic.compress.depth.fitting import MapFitter, find_map_place, no_place_error
from laconic.compress.depth.folding import check_foldable, fold
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.model import Batch, LanguageModel
from laconic.model.depth import drop_blocks, drop_subblock, last_writer
from laconic.model.layers import Layers, consecutive_ranges, find_layers, get_layers

Replacement = Literal["nothing", "bias", "linear"]


def make_fitter(
    lm: LanguageModel, data: Calibration | None, replace: Replacement, longest: int = 1
) -> MapFitter | None:
    """Make the fitter of replacements.

    Args:
        lm: the original model.
        data: calibration data.
        replace: the kind of replacement.
        longest: length of runs up to which maps are fitted together.

    Returns:
        The fitter, or None if `replace` is `nothing` or there is no data.
    """
    return None if replace == "nothing" or data is None else MapFitter(lm, data, replace == "linear", longest)


def check_places(lm: LanguageModel, cuts: Sequence[Cut], data: Calibration) -> None:
    """Raise UserError if the model has no place for the replacement of some run of dropped blocks.

    Args:
        lm: the original model.
        cuts: the cuts; parts of blocks are ignored.
        data: calibration data; its first batch is run.
    """
    for layers in find_layers(lm):
        for run in consecutive_ranges(dropped_blocks(cuts, layers.name)):
            if find_map_place(lm, layers, run.start, data.batches[0]) is None:
                raise no_place_error(lm, run.start)


def check_maps(lm: LanguageModel, cuts: Sequence[Cut] | None) -> None:
    """Raise UserError if a linear map cannot be multiplied into the layer in front of a run of dropped blocks.

    A map after a norm of the whole stream (post-LN) is always possible.

    Args:
        lm: the model.
        cuts: the cuts; None to check every place where a run can begin.
    """
    for layers in find_layers(lm):
        if layers.shared or layers.stack.other_linears:
            continue
        runs = [] if cuts is None else consecutive_ranges(dropped_blocks(cuts, layers.name))
        for start in range(len(layers)) if cuts is None else [run.start for run in runs]:
            if start and not _ends_in_norm(lm, layers, start - 1):
                check_foldable(lm, last_writer(lm, layers, start - 1))


def _ends_in_norm(lm: LanguageModel, layers: Layers, index: int) -> bool:
    """Whether block `index` ends in a norm of the whole stream, according to the description of the architecture."""
    block, before = lm.model.get_submodule(layers.paths[index]), layers.stack.pre_norm_flag
    return layers.depth.last_norm is not None and not (before is not None and getattr(block, before))


def drop_cuts(
    lm: LanguageModel, cuts: Sequence[Cut], fitter: MapFitter | None, original: LanguageModel
) -> dict[str, int]:
    """Drop cuts from a model, and put replacements in their place, run by run in forward order.

    Args:
        lm: the model, changed in place.
        cuts: the cuts.
        fitter: fits the replacements; None for no replacement.
        original: the model before the cuts; it is not changed.

    Returns:
        Bytes of the matrices that were added, by the path of the module that holds them.

    Raises:
        UserError: the model does not allow the cuts, or has no place for a replacement.
    """
    parts = [cut for cut in cuts if cut.part is not None]
    means = fitter.means(parts) if fitter is not None else {}
    before = find_layers(original)
    for cut in parts:
        layers = get_layers(lm, cut.stack)
        with lm.on_loan(layers.paths[cut.layer]):
            drop_subblock(lm, subblock_at(lm, layers, cut), means.get(cut))
            lm.write_back(layers.paths[cut.layer])
    for layers in before:
        drop_blocks(lm, get_layers(lm, layers.name), dropped_blocks(cuts, layers.name))
    added: dict[str, int] = {}
    # The maps of the original model fit the first run only, because later runs get changed hidden states.
    whole = not parts
    for layers in before if fitter is not None else ():
        dropped = 0
        for run in consecutive_ranges(dropped_blocks(cuts, layers.name)):
            assert fitter is not None
            if whole:
                place, (T, b) = fitter.fit_run(layers, run)
            else:
                present = get_layers(lm, layers.name)
                place, ((T, b),) = fitter.fit(lm, present, run.start - dropped, layers.paths[run.stop - 1 : run.stop])
            added[place.path] = added.get(place.path, 0) + fold(lm, place.path, T, b)
            dropped, whole = dropped + len(run), False
    return added


@dataclass(frozen=True)
class Fold:
    """One direction of the cross-validation.

    Args:
        fitter: fits replacements on one part of the rows; None for no replacement.
        metric: measures the divergence on the other part.
    """

    fitter: MapFitter | None
    metric: KLMetric


@dataclass(frozen=True)
class Measurement:
    """The divergences of a model without some cuts, by the kind of their replacement.

    Args:
        replacement: the replacement to use: the requested one if it diverges less than `nothing`, else `nothing`.
        divergences: the divergences with each replacement that was measured.
    """

    replacement: Replacement
    divergences: Mapping[Replacement, Divergences]

    @property
    def mean(self) -> float:
        """KL(original ‖ changed) with `replacement`, nats per prediction."""
        return self.divergences[self.replacement].mean


@dataclass(frozen=True)
class Trial:
    """Measures the divergence of a model without some cuts.

    Args:
        lm: the original model.
        data: calibration data.
        replacement: the requested kind of replacement.
        folds: the directions of the cross-validation.
        held_out: True if replacements are measured on rows that they were not fitted on.
        cache: results so far, by cuts.
    """

    lm: LanguageModel
    data: Calibration
    replacement: Replacement
    folds: Sequence[Fold]
    held_out: bool
    cache: dict[tuple[Cut, ...], Measurement] = field(default_factory=dict)

    @classmethod
    def of(cls, lm: LanguageModel, data: Calibration, replacement: Replacement, longest: int) -> "Trial":
        """Make a trial.

        The rows are split into two halves for cross-validation, unless there is no replacement or too few rows.

        Args:
            lm: the original model.
            data: calibration data.
            replacement: the kind of replacement.
            longest: length of runs up to which maps are fitted together.
        """

        def make_fold(fitted: Sequence[Batch], measured: Sequence[Batch]) -> Fold:
            fitter = make_fitter(lm, replace(data, batches=list(fitted)), replacement, longest)
            return Fold(fitter, KLMetric(lm, measured))

        if replacement == "nothing" or count_rows(data.batches) < 2 * FOLDS:
            return cls(lm, data, replacement, [make_fold(data.batches, data.batches)], held_out=False)
        half, rest = _split_batches(data)
        return cls(lm, data, replacement, [make_fold(half, rest), make_fold(rest, half)], held_out=True)

    def measure(self, cuts: Sequence[Cut]) -> Measurement:
        """Measure KL(original ‖ model without `cuts`), with the requested replacement and with none.

        If there are too few rows for cross-validation, only the requested replacement is measured.
        """
        key = tuple(cuts)
        if key not in self.cache:
            kinds: set[Replacement] = {self.replacement, "nothing"} if self.held_out else {self.replacement}
            divergences: dict[Replacement, Divergences] = {}
            for kind in sorted(kinds):
                parts: list[Divergences] = []
                for fold in self.folds:
                    shallow_copy = self.lm.shallow_copy()
                    drop_cuts(shallow_copy, cuts, None if kind == "nothing" else fold.fitter, self.lm)
                    parts.append(fold.metric.each(shallow_copy))
                divergences[kind] = reduce(add, parts)
            better = not self.held_out or divergences[self.replacement].beats(divergences["nothing"])
            self.cache[key] = Measurement(self.replacement if better else "nothing", divergences)
        return self.cache[key]


def _split_batches(data: Calibration) -> tuple[list[Batch], list[Batch]]:
    """Split the batches into two halves, or the rows if there are too few batches."""
    batches = data.batches
    if len(batches) >= 2 * FOLDS:
        return batches[::2], batches[1::2]
    first_half, second_half = split_held_out(batches, 0.5, data.seed, "shorten")
    return first_half, split_for_folds(second_half)
