"""Calibration data: batches with the settings for collecting statistics, and splits into fitted and held-out rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from laconic import processes
from laconic.calibrate.anchor import FOLDS
from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.model import Batch
from laconic.progress import Track, silent

Labels = Literal["auto", "sampled", "enumerated", "data"]
"""Where the labels of the Fisher information come from: the predictions of the model, or the data."""


@dataclass(frozen=True)
class Calibration:
    """Calibration batches and their settings.

    Args:
        batches: batches on the CPU.
        labels: labels of the Fisher information. `sampled` draws them from the model (an unbiased estimate),
            `enumerated` weights all classes by their probability (exact), `data` takes the labels of the data (the
            empirical Fisher). `auto` enumerates up to four classes and samples otherwise.
        seed: seed of all random draws.
        track: shows progress.
        corpus: all rows of the split, for steps that train on more than the batches; None if the batches are all.
        max_length: largest number of tokens of a row.
        batch_size: largest number of rows of a batch.
        samples: number of rows drawn from the corpus; None if it is the number of rows of the batches.
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
        """Yield this process's share of the batches, each with its own random generator.

        The generator of a batch depends only on `seed` and the position of the batch, so the draws are the same for any
        number of processes.

        Args:
            what: the label of the progress bar.
        """
        seeds = torch.randint(2**32, (len(self.batches),), generator=torch.Generator().manual_seed(self.seed))
        mine = processes.shard(list(zip(self.batches, seeds.tolist(), strict=True)))
        for batch, seed in self.track(mine, what):
            yield batch, torch.Generator().manual_seed(seed)


def split_held_out(batches: Sequence[Batch], held_out: float, seed: int, step: str) -> tuple[list[Batch], list[Batch]]:
    """Split rows into those to fit on and those held out.

    Args:
        batches: the rows.
        held_out: fraction of the rows to hold out; at least one row is held out.
        seed: seed of the split.
        step: name of the step, for the error.

    Returns:
        The batches to fit on, at least as many as cross-validation has folds, and the held-out batches.

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
    """Return the same rows in at least one batch per cross-validation fold, if there are enough rows."""
    if len(batches) >= FOLDS:
        return batches
    (batch,) = batches
    every = torch.arange(len(batch["input_ids"]))
    folds = [every % FOLDS == fold for fold in range(FOLDS)]
    return [{name: tensor[mask] for name, tensor in batch.items()} for mask in folds if mask.any()]


def held_out_count(batches: Sequence[Batch], held_out: float, step: str) -> int:
    """Return the number of rows to hold out, at least one.

    Args:
        batches: the rows.
        held_out: fraction of the rows to hold out.
        step: name of the step, for the error.

    Raises:
        UserError: too few rows would be left to fit on.
    """
    count = count_rows(batches)
    judging = max(1, round(held_out * count))
    if count - judging < FOLDS:
        raise UserError(f"The step '{step}' needs at least {FOLDS + 1} rows of data, some held out; got {count}.")
    return judging


def count_rows(batches: Sequence[Batch]) -> int:
    """The number of rows of all batches."""
    return sum(len(batch["input_ids"]) for batch in batches)


def _rows(batches: Sequence[Batch], masks: Sequence[torch.Tensor]) -> Iterator[Batch]:
    for batch, mask in zip(batches, masks, strict=True):
        if mask.any():
            yield {name: tensor[mask] for name, tensor in batch.items()}
