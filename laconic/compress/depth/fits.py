"""What stands for each run of blocks of a model that is as yet whole, fitted once for all runs that begin alike."""

from collections.abc import Sequence

from laconic.calibrate import Calibration
from laconic.compress.depth.fitting import Map, Original, Seat, fitted, no_seat, seat_before
from laconic.model import LanguageModel
from laconic.model.layers import Layers

KEPT_NUMBERS = 2**26
"""Numbers in maps that are kept up to this many (512 MiB), and fitted again beyond."""


class Fits:
    """Maps for runs of up to `longest` blocks of `lm`."""

    def __init__(self, lm: LanguageModel, data: Calibration, linear: bool, longest: int = 1) -> None:
        self.lm, self.data, self.linear, self.longest = lm, data, linear, longest
        self._kept: dict[tuple[str, int], tuple[Seat, list[Map]]] = {}

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

    def _keep(self, key: tuple[str, int], found: tuple[Seat, list[Map]]) -> None:
        # Last, as the first are forgotten.
        self._kept.pop(key, None)
        self._kept[key] = found
        while len(self._kept) > 1 and sum(_numbers(maps) for _, maps in self._kept.values()) > KEPT_NUMBERS:
            del self._kept[next(iter(self._kept))]


def _numbers(maps: Sequence[Map]) -> int:
    return sum(b.numel() + (0 if T is None else T.numel()) for T, b in maps)
