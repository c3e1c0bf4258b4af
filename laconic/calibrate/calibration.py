"""The data that statistics are collected on, with what decides how."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from laconic import processes
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
    batch_size: rows of a batch at most.
    samples: rows that the batches were drawn as; None where every row of theirs is one.
    """

    batches: list[Batch]
    labels: Labels = "auto"
    seed: int = 0
    track: Track = silent
    corpus: Corpus | None = None
    max_length: int = 128
    batch_size: int = 16
    samples: int | None = None

    def share(self, what: str) -> Iterator[tuple[Batch, torch.Generator]]:
        """The batches that this process runs, each with random numbers of its own.

        So what is drawn for a batch hangs on nothing but the seed and its place, however many processes there are.
        """
        seeds = torch.randint(2**32, (len(self.batches),), generator=torch.Generator().manual_seed(self.seed))
        mine = processes.share(list(zip(self.batches, seeds.tolist(), strict=True)))
        for batch, seed in self.track(mine, what):
            yield batch, torch.Generator().manual_seed(seed)
