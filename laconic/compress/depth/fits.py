"""What stands for each run of blocks, and each sub-block, of a model that is as yet whole.

Fitted once for all runs that begin alike, and for all sub-blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.calibrate import Calibration
from laconic.calibrate.activation_capture import ActivationCapture
from laconic.compress.depth.cuts import Cut, every_cut, subblock_at
from laconic.compress.depth.fitting import Map, Original, Seat, fitted, no_seat, seat_before
from laconic.compress.depth.stream import rows_in
from laconic.model import LanguageModel, predict
from laconic.model.layers import Layers, find_layers
from laconic.model.layers import get_layers as stack_named

KEPT_NUMBERS = 2**26
"""Numbers in maps that are kept up to this many (512 MiB), and fitted again beyond."""


class Fits:
    """Maps for runs of up to `longest` blocks of `lm`."""

    def __init__(self, lm: LanguageModel, data: Calibration, linear: bool, longest: int = 1) -> None:
        self.lm, self.data, self.linear, self.longest = lm, data, linear, longest
        self._kept: dict[tuple[str, int], tuple[Seat, list[Map]]] = {}
        self._means: dict[Cut, Tensor] = {}

    def of(self, layers: Layers, run: range) -> tuple[Seat, Map]:
        """For the `run` of the model's own `layers`, with nothing dropped before it.

        Raises:
            UserError: nothing can stand there.
        """
        key = layers.name, run.start
        if key not in self._kept or len(run) > len(self._kept[key][1]):
            longest = max(self.longest, len(run))
            blocks = layers.paths[run.start : run.start + longest]
            self._keep(key, self.fit(self.lm, layers, run.start, blocks))
        seat, maps = self._kept[key]
        return seat, maps[len(run) - 1]

    def fit(self, lm: LanguageModel, layers: Layers, place: int, blocks: Sequence[str]) -> tuple[Seat, list[Map]]:
        """For blocks gone in front of the layer `place` of `lm`, up to each of `blocks` of the whole model.

        Raises:
            UserError: nothing can stand there.
        """
        seat = seat_before(lm, layers, place, self.data.batches[0])
        if seat is None:
            raise no_seat(lm, place)
        return seat, fitted(lm, seat, layers, Original(self.lm, tuple(blocks)), self.data, self.linear)

    def means(self, cuts: Sequence[Cut]) -> dict[Cut, Tensor]:
        """What each of these sub-blocks adds to the stream; one pass over the data is for all of the model."""
        if not all(cut in self._means for cut in cuts):
            every = [cut for row in every_cut(self.lm, "sublayers").values() for cut in row]
            self._means = added_by(self.lm, every, self.data)
        return {cut: self._means[cut] for cut in cuts}

    def _keep(self, key: tuple[str, int], found: tuple[Seat, list[Map]]) -> None:
        # Last, as the first are forgotten.
        self._kept.pop(key, None)
        self._kept[key] = found
        while len(self._kept) > 1 and sum(_numbers(maps) for _, maps in self._kept.values()) > KEPT_NUMBERS:
            del self._kept[next(iter(self._kept))]


def _numbers(maps: Sequence[Map]) -> int:
    return sum(b.numel() + (0 if T is None else T.numel()) for T, b in maps)


@torch.no_grad()
def added_by(lm: LanguageModel, cuts: Sequence[Cut], data: Calibration) -> dict[Cut, Tensor]:
    """What each sub-block adds to the stream, averaged over the tokens that count."""
    writers = {cut: subblock_at(lm, stack_named(lm, cut.stack), cut).writer for cut in cuts}
    sums: dict[Cut, Tensor] = {}
    counts = dict.fromkeys(cuts, 0)
    stacks = {layers.name: layers for layers in find_layers(lm)}
    for on_cpu in data.batches:
        batch = {name: tensor.to(lm.device) for name, tensor in on_cpu.items()}
        blocks = {cut: stacks[cut.stack].paths[cut.layer] for cut in cuts}
        with ActivationCapture(lm.model, dict.fromkeys((*writers.values(), *blocks.values()))) as tap:
            predict(lm, batch)
        for cut, writer in writers.items():
            hidden = tap.outputs[blocks[cut]][0]
            rows = rows_in(lm, batch, stacks[cut.stack], hidden)
            written = rows.of(rows.lines(tap.outputs[writer][0].reshape(hidden.shape)))
            sums[cut] = sums.get(cut, 0) + written.sum(0, dtype=torch.float64)
            counts[cut] += len(written)
    return {cut: total / max(counts[cut], 1) for cut, total in sums.items()}
