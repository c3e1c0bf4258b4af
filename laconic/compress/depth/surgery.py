"""Cuts taken out of a model, with what stands in their place."""

from collections.abc import Sequence
from typing import Literal

from laconic.calibrate import Calibration
from laconic.compress.depth.cuts import Cut, subblock_at, whole_blocks
from laconic.compress.depth.fits import Fits
from laconic.compress.depth.fitting import no_seat, seat_before
from laconic.compress.depth.folding import fold
from laconic.model import LanguageModel
from laconic.model.depth import drop_blocks
from laconic.model.layers import layers_of, runs_of
from laconic.model.layers import named as stack_named
from laconic.model.subblocks import drop_subblock

Replacement = Literal["nothing", "bias", "linear"]


def fits_for(lm: LanguageModel, data: Calibration | None, replace: Replacement, longest: int = 1) -> Fits | None:
    """Of `lm`, for runs of up to `longest`; None where nothing is to stand for them."""
    return None if replace == "nothing" or data is None else Fits(lm, data, replace == "linear", longest)


def check_seats(lm: LanguageModel, cuts: Sequence[Cut], data: Calibration) -> None:
    """Raise UserError where nothing can stand for some run of `cuts`."""
    for layers in layers_of(lm):
        for run in runs_of(whole_blocks(cuts, layers.name)):
            if seat_before(lm, layers, run.start, data.batches[0]) is None:
                raise no_seat(lm, run.start)


def take_out(lm: LanguageModel, cuts: Sequence[Cut], fits: Fits | None, original: LanguageModel) -> dict[str, int]:
    """Drop `cuts` from `lm`, in place, run by run in forward order; `original` is what it was, and is not changed.

    `fits` says what stands in their place, None for nothing.

    Returns the bytes of matrices that were added, by the path of the module that holds them.

    Raises:
        UserError: the cuts cannot go, or nothing can take their place.
    """
    parts = [cut for cut in cuts if cut.part is not None]
    means = fits.means(parts) if fits is not None else {}
    before = layers_of(original)
    for cut in parts:
        drop_subblock(lm, subblock_at(lm, stack_named(lm, cut.stack), cut), means.get(cut))
    for layers in before:
        drop_blocks(lm, stack_named(lm, layers.name), whole_blocks(cuts, layers.name))
    added: dict[str, int] = {}
    # Up to the first run the hidden states are those of the original.
    whole = not parts
    for layers in before if fits is not None else ():
        gone = 0
        for run in runs_of(whole_blocks(cuts, layers.name)):
            assert fits is not None
            if whole:
                seat, (T, b) = fits.of(layers, run)
            else:
                here = stack_named(lm, layers.name)
                seat, ((T, b),) = fits.fit(lm, here, run.start - gone, layers.paths[run.stop - 1 : run.stop])
            added[seat.path] = added.get(seat.path, 0) + fold(lm, seat.path, T, b)
            gone, whole = gone + len(run), False
    return added
