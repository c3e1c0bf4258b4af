"""Where the time of a forward pass goes: to which matrices, and to everything else.

Each matrix is timed inside passes of the whole model, so what is found are parts of one measurement: a load on the
machine that comes and goes slows the parts and the whole alike, and their ratio stays.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from laconic.calibrate.passes import evaluating, forward, now, random_batch
from laconic.model import LanguageModel, Site
from laconic.progress import Track, silent
from laconic.typed import Typed

WARM_UP = 2
RUNS = 15
FEWEST_RUNS = 3
PATIENCE = 20.0
"""Seconds after which a slow model is run no more, once it has run often enough for a median."""

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Workload(metaclass=Typed):
    """What a latency is of: one forward pass over `batch` rows of `length` tokens."""

    name: ClassVar[str] = "workload"

    batch: Positive = 8
    length: Positive = 128


USUAL = Workload()


@dataclass(frozen=True)
class Use:
    """What one pass does with a matrix: the input rows of each call, and the fraction of the pass that they take."""

    rows: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Profile:
    """seconds: of one pass, the median. uses: of each matrix, by site name."""

    seconds: float
    uses: Mapping[str, Use]


def profile(lm: LanguageModel, sites: Sequence[Site], workload: Workload, track: Track = silent) -> Profile:
    """Run `lm` several times and say what part of it the matrices at `sites` are. Looking up an embedding counts 0."""
    inputs = random_batch(lm, workload.batch, workload.length)
    wholes: list[float] = []
    shares: dict[str, list[float]] = {site.name: [] for site in sites}
    with evaluating(lm), torch.inference_mode(), _stopwatches(lm, sites) as watches:
        for _ in range(WARM_UP):
            forward(lm, inputs)
        for _ in track(range(RUNS), "Timing the model"):
            for watch in watches.values():
                watch.reset()
            start = now(lm.device)
            forward(lm, inputs)
            wholes.append(now(lm.device) - start)
            for name, watch in watches.items():
                shares[name].append(watch.seconds / wholes[-1])
            if len(wholes) >= FEWEST_RUNS and sum(wholes) > PATIENCE:
                break
        rows = {name: tuple(watch.rows) for name, watch in watches.items()}
    return Profile(median(wholes), {name: Use(rows[name], median(shares[name])) for name in shares})


class _Stopwatch:
    """Runs while any of the modules that it hangs on is called."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0.0
        self.reset()

    def reset(self) -> None:
        self.seconds = 0.0
        self.rows: list[int] = []

    def on_call(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._start = now(self._device)

    def on_return(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.seconds += now(self._device) - self._start
        self.rows.append(output.numel() // output.shape[-1])


@contextmanager
def _stopwatches(lm: LanguageModel, sites: Sequence[Site]) -> Iterator[dict[str, _Stopwatch]]:
    watches = {site.name: _Stopwatch(lm.device) for site in sites}
    hooks = []
    for site in sites:
        for module in dict.fromkeys(place.module for place in site.places):
            if not site.is_lookup:
                watch = watches[site.name]
                hooks.append(module.register_forward_pre_hook(watch.on_call))
                hooks.append(module.register_forward_hook(watch.on_return))
    try:
        yield watches
    finally:
        for hook in hooks:
            hook.remove()
