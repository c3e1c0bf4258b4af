"""The data that statistics are collected on, with what decides how.

Calibration rows taken apart: those that something is fitted on, and those that it is judged on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from laconic import processes
from laconic.calibrate.anchor import FOLDS
from laconic.calibrate.examples import Corpus
from laconic.errors import UserError
from laconic.model import Batch
from laconic.progress import Track, silent

Labels = Literal["auto", "sampled", "enumerated", "data"]
"""Where the labels of the Fisher information come from: the predictions of the model, or the data."""


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


def split_held_out(batches: Sequence[Batch], held_out: float, seed: int, step: str) -> tuple[list[Batch], list[Batch]]:
    """The rows to fit on, in at least as many batches as cross-validation has folds, and those held out.

    held_out: the fraction of the rows.
    step:     whose rows they are, for the sentence of an error.

    Raises:
        UserError: there are too few rows.
    """
    judging = held_out_count(batches, held_out, step)
    sizes = [len(batch["input_ids"]) for batch in batches]
    count = sum(sizes)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(count, dtype=torch.bool)
    held[order[:judging]] = True
    masks = held.split(sizes)
    return split_for_folds(list(_rows(batches, [~mask for mask in masks]))), list(_rows(batches, masks))


def split_for_folds(batches: list[Batch]) -> list[Batch]:
    """The same rows in at least as many batches as cross-validation has folds, where there are as many rows."""
    if len(batches) >= FOLDS:
        return batches
    (batch,) = batches
    every = torch.arange(len(batch["input_ids"]))
    folds = [every % FOLDS == fold for fold in range(FOLDS)]
    return [{name: tensor[mask] for name, tensor in batch.items()} for mask in folds if mask.any()]


def held_out_count(batches: Sequence[Batch], held_out: float, step: str) -> int:
    """How many.

    Raises:
        UserError: that leaves too few to fit on.
    """
    count = count_rows(batches)
    judging = max(1, round(held_out * count))
    if count - judging < FOLDS:
        raise UserError(f"The step '{step}' needs at least {FOLDS + 1} rows of data, some held out; got {count}.")
    return judging


def count_rows(batches: Sequence[Batch]) -> int:
    """Of all batches."""
    return sum(len(batch["input_ids"]) for batch in batches)


def _rows(batches: Sequence[Batch], masks: Sequence[torch.Tensor]) -> Iterator[Batch]:
    for batch, mask in zip(batches, masks, strict=True):
        if mask.any():
            yield {name: tensor[mask] for name, tensor in batch.items()}
