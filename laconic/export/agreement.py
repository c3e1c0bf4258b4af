"""Whether an exported model says what the model in torch says: on random tokens and on real text, padded and not."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.calibrate.batching import positions
from laconic.calibrate.corpus import batches, read
from laconic.calibrate.passes import evaluating, random_batch
from laconic.errors import UserError
from laconic.formats import DynamicInt8
from laconic.model import Batch, LanguageModel, Task, run
from laconic.progress import Track
from laconic.runtime.extras import ONNX, OPENVINO
from laconic.runtime.portable import exact
from laconic.runtime.programs import Program
from laconic.runtime.signature import TARGETS, Signature

SHAPES = ((1, 5), (3, 16), (2, 33), (5, 2))
"""Batch × length of the random tokens."""
TEXTS, LONGEST = 12, 64
"""How many real texts are read, of how many tokens at most."""
SOURCE = "builtin:pydoc"
SAME = 1e-3
"""The largest difference of a logit, as part of the largest logit: sums in another order come to some 1e-6."""
ROUNDED = 2.0
"""How many times as large it may be as what rounding inputs to 8 bits changes: what lies between two steps goes either
way, and from there on everything is another rounding."""


@dataclass(frozen=True)
class Agreement:
    """error: largest difference of one number, as part of the largest number; below `tolerance`.

    rows: texts and rows of random tokens, in so many batches.
    """

    error: float
    tolerance: float
    rows: int
    batches: int


def check_agreement(lm: LanguageModel, program: Program, signature: Signature, runtime: str, track: Track) -> Agreement:
    """Compare `program` with `lm` in torch, number by number, wherever there is no padding.

    Raises:
        UserError: they differ.
    """
    data = list(_data(lm))
    reference = exact(lm, runtime)
    unrounded = exact(lm, OPENVINO) if _rounds(lm, runtime) else None
    largest = error = noise = torch.zeros(())
    with evaluating(reference), torch.inference_mode():
        for batch in track(data, "agreement"):
            ours = run(reference, batch)[signature.outputs[0]]
            theirs = program(signature.feeds(lm, batch))[signature.outputs[0]]
            _check_shape(ours, theirs, runtime)
            counted = _counted(lm, ours, batch)
            largest = torch.maximum(largest, ours[counted].abs().max())
            # A number that is none must not be lost in a maximum.
            error = torch.maximum(error, (ours - theirs)[counted].abs().nan_to_num(torch.inf).max())
            if unrounded is not None:
                plain = run(unrounded, batch)[signature.outputs[0]]
                noise = torch.maximum(noise, (ours - plain)[counted].abs().max())
    tolerance = SAME + ROUNDED * (noise / largest).item()
    found = Agreement((error / largest).item(), tolerance, sum(len(batch["input_ids"]) for batch in data), len(data))
    if not found.error <= tolerance:
        raise UserError(
            f"The model for {runtime} does not compute what the model in torch does: its outputs are off by up to "
            f"{found.error:.2%} of the largest, where {tolerance:.2%} would be rounding; nothing was written."
        )
    return found


def _rounds(lm: LanguageModel, runtime: str) -> bool:
    return runtime == ONNX and any(isinstance(module, DynamicInt8) for module in lm.model.modules())


def _data(lm: LanguageModel) -> Iterator[Batch]:
    longest = positions(lm)
    for seed, (rows, length) in enumerate(SHAPES):
        batch = random_batch(lm, rows, length if longest is None else min(length, longest), seed)
        yield _padded(batch)
    if lm.tokenizer is not None:
        texts = read(SOURCE, "dev").first(TEXTS)
        yield from batches(lm, texts, batch_size=TEXTS // 3, max_length=LONGEST)


def _padded(batch: Batch) -> Batch:
    """Each row after the first with one token of padding more, of its source alone."""
    mask = batch["attention_mask"].clone()
    rows, length = mask.shape
    for row in range(rows):
        mask[row, max(1, length - row) :] = 0
    return {**batch, "attention_mask": mask}


def _counted(lm: LanguageModel, outputs: Tensor, batch: Batch) -> Tensor:
    """Where an output is one that somebody reads; every one of targets, which have no mask of their own."""
    mask = batch["attention_mask"].bool()
    by_token = outputs.dim() == 3 and TARGETS not in batch and lm.task is not Task.SEQ2SEQ
    if by_token and outputs.shape[:2] == mask.shape:
        return mask
    return torch.ones(len(outputs), dtype=torch.bool)


def _check_shape(ours: Tensor, theirs: Tensor, runtime: str) -> None:
    if ours.shape != theirs.shape:
        raise UserError(
            f"The model for {runtime} gives outputs of the shape {tuple(theirs.shape)}, where the model in torch gives "
            f"{tuple(ours.shape)}; nothing was written."
        )
