"""Cuts taken out of a model, with what stands in their place."""

from collections.abc import Sequence
from typing import Literal

from laconic.calibrate import Calibration
from laconic.compress.depth.cuts import Cut, subblock_at, whole_blocks
from laconic.compress.depth.fits import Fits
from laconic.compress.depth.fitting import no_seat, seat_before
from laconic.compress.depth.folding import check_takes, fold
from laconic.model import LanguageModel
from laconic.model.depth import drop_blocks
from laconic.model.layers import Layers, consecutive_ranges, find_layers
from laconic.model.layers import get_layers as stack_named
from laconic.model.subblocks import drop_subblock, last_writer

Replacement = Literal["nothing", "bias", "linear"]


def fits_for(lm: LanguageModel, data: Calibration | None, replace: Replacement, longest: int = 1) -> Fits | None:
    """Of `lm`, for runs of up to `longest`; None where nothing is to stand for them."""
    return None if replace == "nothing" or data is None else Fits(lm, data, replace == "linear", longest)


def check_seats(lm: LanguageModel, cuts: Sequence[Cut], data: Calibration) -> None:
    """Raise UserError where nothing can stand for some run of `cuts`."""
    for layers in find_layers(lm):
        for run in consecutive_ranges(whole_blocks(cuts, layers.name)):
            if seat_before(lm, layers, run.start, data.batches[0]) is None:
                raise no_seat(lm, run.start)


def check_maps(lm: LanguageModel, cuts: Sequence[Cut] | None) -> None:
    """Raise UserError where a linear map for some run of `cuts` does not fit into what writes to the stream before it;
    None for any blocks. What follows a norm of the whole stream always fits."""
    for layers in find_layers(lm):
        if layers.shared or layers.stack.plain:
            continue
        every = range(len(layers))
        starts = every if cuts is None else [run.start for run in consecutive_ranges(whole_blocks(cuts, layers.name))]
        for start in starts:
            if start and not _ends_in_norm(lm, layers, start - 1):
                check_takes(lm, last_writer(lm, layers, start - 1))


def _ends_in_norm(lm: LanguageModel, layers: Layers, index: int) -> bool:
    """Whether the stream passes a norm last; as far as the class has a name for that, as it does for the matrices."""
    block, before = lm.model.get_submodule(layers.paths[index]), layers.stack.before
    return layers.depth.closing is not None and not (before is not None and getattr(block, before))


def take_out(lm: LanguageModel, cuts: Sequence[Cut], fits: Fits | None, original: LanguageModel) -> dict[str, int]:
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
        drop_blocks(lm, stack_named(lm, layers.name), whole_blocks(cuts, layers.name))
    added: dict[str, int] = {}
    # Up to the first run the hidden states are those of the original.
    whole = not parts
    for layers in before if fits is not None else ():
        gone = 0
        for run in consecutive_ranges(whole_blocks(cuts, layers.name)):
            assert fits is not None
            if whole:
                seat, (T, b) = fits.of(layers, run)
            else:
                here = stack_named(lm, layers.name)
                seat, ((T, b),) = fits.fit(lm, here, run.start - gone, layers.paths[run.stop - 1 : run.stop])
            added[seat.path] = added.get(seat.path, 0) + fold(lm, seat.path, T, b)
            gone, whole = gone + len(run), False
    return added
