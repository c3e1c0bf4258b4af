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
from laconic.model import Batch, LanguageModel, Task, gather_predictions, run_model
from laconic.model.embedding_modules import SENTENCE
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
    """error: largest difference of one number, as part of the largest number of its output; below `tolerance`. Of
    several outputs, the one that comes nearest to that.

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
    distances = {name: _Distance() for name in signature.outputs}
    with evaluating(reference), torch.inference_mode():
        for batch in track(data, "agreement"):
            theirs = program(signature.feeds(lm, batch))
            ours = _said(reference, batch, signature)
            plain = ours if unrounded is None else _said(unrounded, batch, signature)
            for name, distance in distances.items():
                _check_shape(ours[name], theirs[name], runtime)
                counted = _counted(lm, ours[name], batch)
                distance.see(ours[name][counted], theirs[name][counted], plain[name][counted])
    name, worst = max(distances.items(), key=lambda one: one[1].error / one[1].tolerance)
    found = Agreement(worst.error, worst.tolerance, sum(len(batch["input_ids"]) for batch in data), len(data))
    if not found.error <= found.tolerance:
        raise UserError(
            f"The model for {runtime} does not compute what the model in torch does: its {name} is off by up to "
            f"{found.error:.2%} of the largest number, where {found.tolerance:.2%} would be rounding; nothing was "
            "written."
        )
    return found


class _Distance:
    """How far one output is off in all batches, and how far rounding would put it off."""

    def __init__(self) -> None:
        self._largest = self._error = self._noise = torch.zeros(())

    def see(self, ours: Tensor, theirs: Tensor, plain: Tensor) -> None:
        """The numbers of one batch: in torch, in the other runtime, and in torch without rounding."""
        self._largest = torch.maximum(self._largest, ours.abs().max())
        # A number that is none must not be lost in a maximum.
        self._error = torch.maximum(self._error, (ours - theirs).abs().nan_to_num(torch.inf).max())
        self._noise = torch.maximum(self._noise, (ours - plain).abs().max())

    @property
    def error(self) -> float:
        return (self._error / self._scale).item()

    @property
    def tolerance(self) -> float:
        return SAME + ROUNDED * (self._noise / self._scale).item()

    @property
    def _scale(self) -> Tensor:
        # Of a model that says nothing but zeros.
        return self._largest.clamp(min=torch.finfo(self._largest.dtype).tiny)


def _said(lm: LanguageModel, batch: Batch, signature: Signature) -> dict[str, Tensor]:
    """What the model in torch gives for a batch, by the names of the signature's outputs."""
    output = run_model(lm, batch)
    vectors = {SENTENCE: gather_predictions(lm, output, batch).values} if SENTENCE in signature.outputs else {}
    return {name: vectors[name] if name in vectors else output[name] for name in signature.outputs}


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
