"""The data that statistics are collected on, with what decides how."""

from dataclasses import dataclass
from typing import Literal

from laconic.calibrate.examples import Corpus
from laconic.model import Batch
from laconic.progress import Track, silent

Labels = Literal["auto", "sampled", "enumerated", "data"]


@dataclass(frozen=True)
class Calibration:
    """Batches and where the labels of the Fisher information come from.

    labels: `sampled` from the model (an unbiased estimate of the true Fisher), `enumerated` over all classes weighted
    by their probability (exact), the `data`'s own (the empirical Fisher); `auto` enumerates up to four classes and
    samples otherwise.
    corpus: all rows of the split that the batches were drawn from, for steps that train; None where there are no more.
    max_length: tokens of a row at most.
    """

    batches: list[Batch]
    labels: Labels = "auto"
    seed: int = 0
    track: Track = silent
    corpus: Corpus | None = None
    max_length: int = 128
