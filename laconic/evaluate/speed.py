"""Time of a forward pass (`laconic.calibrate.passes`): warmed up, repeated, on a fixed number of threads."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from laconic.calibrate.passes import evaluating, forward, random_batch, seconds_of
from laconic.model import LanguageModel
from laconic.progress import Track, silent

WARM_UP = 3
RUNS = 30
FEWEST_RUNS = 5
PATIENCE = 30.0
"""Seconds after which a slow model is timed no more, once it has run often enough for a median."""


@dataclass(frozen=True)
class Quartiles:
    """Of seconds that were measured again and again."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quartiles":
        lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass of `batch` rows of `length` tokens: median and quartiles over `runs`."""

    batch: int
    length: int
    median: float
    lower_quartile: float
    upper_quartile: float
    runs: int

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.batch * self.length / self.median


def latency(
    lm: LanguageModel,
    batch: int = 8,
    length: int = 128,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    track: Track = silent,
) -> Latency:
    """Time `lm` on random tokens; `threads` as torch has it when None. Slow models are run fewer times."""
    inputs = random_batch(lm, batch, length)
    seconds: list[float] = []
    rows = f"{batch} × {length} tokens"
    with evaluating(lm), fixed_threads(threads), torch.inference_mode():
        first = [
            seconds_of(lambda: forward(lm, inputs), lm.device) for _ in track(range(WARM_UP), f"Warming up for {rows}")
        ]
        # So many as there will be time for, so that the bar has an end.
        fitting = math.ceil(PATIENCE / max(min(first), 1e-9))
        for _ in track(range(min(runs, max(FEWEST_RUNS, fitting))), f"Timing {rows}"):
            seconds.append(seconds_of(lambda: forward(lm, inputs), lm.device))
            if sum(seconds) >= PATIENCE and len(seconds) >= FEWEST_RUNS:
                break
    found = Quartiles.of(seconds)
    length = inputs["input_ids"].shape[1]
    return Latency(batch, length, found.median, found.lower_quartile, found.upper_quartile, len(seconds))


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """This many threads for the time being."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
