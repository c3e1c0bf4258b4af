"""Calibration rows taken apart: those that something is fitted on, and those that it is judged on."""

from collections.abc import Iterator, Sequence

import torch

from laconic.calibrate.anchor import FOLDS
from laconic.errors import UserError
from laconic.model import Batch


def taken_apart(batches: Sequence[Batch], held_out: float, seed: int) -> tuple[list[Batch], list[Batch]]:
    """The rows to fit on, in at least as many batches as cross-validation has folds, and those held out.

    Raises:
        UserError: there are too few rows.
    """
    judging = rows_held_out(batches, held_out)
    sizes = [len(batch["input_ids"]) for batch in batches]
    count = sum(sizes)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(count, dtype=torch.bool)
    held[order[:judging]] = True
    masks = held.split(sizes)
    fitted = list(_rows(batches, [~mask for mask in masks]))
    if len(fitted) < FOLDS:
        (batch,) = fitted
        every = torch.arange(len(batch["input_ids"]))
        fitted = [{name: tensor[every % FOLDS == fold] for name, tensor in batch.items()} for fold in range(FOLDS)]
    return fitted, list(_rows(batches, masks))


def rows_held_out(batches: Sequence[Batch], held_out: float) -> int:
    """How many.

    Raises:
        UserError: that leaves too few to fit on.
    """
    count = sum(len(batch["input_ids"]) for batch in batches)
    judging = max(1, round(held_out * count))
    if count - judging < FOLDS:
        raise UserError(f"The step 'correct' needs at least {FOLDS + 1} rows of data, some held out; got {count}.")
    return judging


def _rows(batches: Sequence[Batch], masks: Sequence[torch.Tensor]) -> Iterator[Batch]:
    for batch, mask in zip(batches, masks, strict=True):
        if mask.any():
            yield {name: tensor[mask] for name, tensor in batch.items()}
