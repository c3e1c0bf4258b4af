"""Compare the outputs of an exported model with those of the model in torch, on random tokens and text with padding."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laconic.calibrate.batching import batches, max_positions
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.passes import evaluating, random_batch
from laconic.calibrate.sources import read
from laconic.errors import UserError
from laconic.formats import DynamicInt8
from laconic.model import Batch, LanguageModel, ModelTask, gather_predictions, run_model
from laconic.model.embedding_modules import SENTENCE
from laconic.progress import Track
from laconic.runtime.engines import ONNX, OPENVINO, Program
from laconic.runtime.portable import to_exact
from laconic.runtime.sessions import LOGITS, CachedProgram, read_in_parts
from laconic.runtime.signature import TARGETS, Signature
from laconic.runtime.written import Seq2SeqProgram

SHAPES = ((1, 5), (3, 16), (2, 33), (5, 2), (1, 520))
"""Batch sizes and lengths of the random tokens. State spaces and linear attentions compute chunks of 64 to 256 tokens;
a graph for one chunk differs on the longest."""
SOURCE, TEXTS, MAX_LENGTH = "builtin:pydoc", 12, 64
"""The source of the texts, their number, and their largest length in tokens."""
TOLERANCE = 1e-3
"""The tolerance for outputs, relative to the largest output. Another order of sums changes about 1e-6."""
NOISE_FACTOR = 2.0
"""If inputs are rounded to 8 bits, the tolerance grows by this factor times the change of the outputs due to rounding.

The two runtimes may round an input near the middle of two levels differently. This changes the rounding in all later
layers.
"""


@dataclass(frozen=True)
class Agreement:
    """The difference between the outputs of an exported model and of the model in torch.

    Args:
        error: the largest absolute difference of an output, divided by the largest absolute value of that output. With
            several outputs, the error of the one with the largest ratio of error to tolerance.
        tolerance: the largest accepted error of that output.
        rows: the number of texts and rows of random tokens that were compared.
        batches: the number of batches.
    """

    error: float
    tolerance: float
    rows: int
    batches: int


def check_agreement(lm: LanguageModel, program: Program, signature: Signature, runtime: str, track: Track) -> Agreement:
    """Compare all outputs of an exported model with the model in torch. Padding is left out.

    A model with a cache reads each text in three calls; see `read_in_parts`.

    Args:
        lm: the model in torch.
        program: the exported model.
        signature: its inputs and outputs.
        runtime: `ONNX` or `OPENVINO`.
        track: reports progress.

    Raises:
        UserError: an output has another shape, or differs by more than the tolerance.
    """
    reference = to_exact(lm, runtime)
    rounds_inputs = runtime == ONNX and any(isinstance(module, DynamicInt8) for module in lm.model.modules())
    references = References(reference, to_exact(lm, OPENVINO) if rounds_inputs else None)

    def run(batch: Batch) -> Mapping[str, Tensor]:
        feeds = signature.feeds(lm, batch)
        if isinstance(program, CachedProgram):
            return {LOGITS: read_in_parts(program.start(), feeds)}
        if isinstance(program, Seq2SeqProgram):
            targets = {**program.read_source(feeds), "input_ids": feeds[TARGETS]}
            return {LOGITS: read_in_parts(program.start(), targets)}
        return program(feeds)

    return compare(references, run, signature, runtime, track)


@dataclass(frozen=True)
class References:
    """The models in torch that an exported model is compared with.

    Args:
        rounded: computes what the exported model should.
        unrounded: the same without rounding of inputs; None if inputs are not rounded.
        tolerance: the largest accepted error without rounding of inputs.
    """

    rounded: LanguageModel
    unrounded: LanguageModel | None = None
    tolerance: float = TOLERANCE


def compare(
    references: References,
    run: Callable[[Batch], Mapping[str, Tensor]],
    signature: Signature,
    runtime: str,
    track: Track,
) -> Agreement:
    """Compare all outputs of an exported model with a model in torch. Padding is left out.

    Args:
        references: the models in torch.
        run: computes the outputs of the exported model by name.
        signature: its inputs and outputs.
        runtime: the name of the target, for messages.
        track: reports progress.

    Raises:
        UserError: an output has another shape, or differs by more than the tolerance.
    """
    reference = references.rounded
    data = list(_batches(reference))
    errors = {name: _Error(references.tolerance) for name in signature.predictions}
    with evaluating(reference), torch.inference_mode():
        for batch in track(data, "agreement"):
            # First, so that inputs that the model itself cannot read are its own error.
            expected = model_outputs(reference, batch, signature)
            outputs = run(batch)
            unrounded = references.unrounded
            exact = expected if unrounded is None else model_outputs(unrounded, batch, signature)
            for name, error in errors.items():
                if expected[name].shape != outputs[name].shape:
                    raise UserError(
                        f"The model for {runtime} gives outputs of the shape {tuple(outputs[name].shape)}, where the "
                        f"model in torch gives {tuple(expected[name].shape)}; nothing was written."
                    )
                mask = _mask(reference, expected[name], batch)
                error.update(*(each[name][mask].float() for each in (expected, outputs, exact)))
    name, worst = max(errors.items(), key=lambda item: item[1].relative / item[1].tolerance)
    agreement = Agreement(worst.relative, worst.tolerance, sum(len(batch["input_ids"]) for batch in data), len(data))
    if not agreement.error <= agreement.tolerance:
        raise UserError(
            f"The model for {runtime} does not compute what the model in torch does: its output '{name}' is off by up "
            f"to {agreement.error:.2%} of the largest number, where {agreement.tolerance:.2%} would be rounding; "
            "nothing was written; use the model in torch, with the runtime eager or compile."
        )
    return agreement


class _Error:
    """The error of one output over all batches, and the change due to rounding of inputs.

    Args:
        tolerance: the largest accepted error without rounding of inputs.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._largest = self._error = self._noise = torch.zeros(())

    def update(self, expected: Tensor, output: Tensor, exact: Tensor) -> None:
        """Add a batch.

        Args:
            expected: the output in torch.
            output: the same output of the exported model.
            exact: the output in torch without rounding of inputs.
        """
        self._largest = torch.maximum(self._largest, expected.abs().max())
        # NaN counts as infinite, because a maximum would ignore it.
        self._error = torch.maximum(self._error, (expected - output).abs().nan_to_num(torch.inf).max())
        self._noise = torch.maximum(self._noise, (expected - exact).abs().max())

    @property
    def relative(self) -> float:
        return (self._error / self._scale).item()

    @property
    def tolerance(self) -> float:
        return self._tolerance + NOISE_FACTOR * (self._noise / self._scale).item()

    @property
    def _scale(self) -> Tensor:
        # All outputs may be zero.
        return self._largest.clamp(min=torch.finfo(self._largest.dtype).tiny)


def model_outputs(lm: LanguageModel, batch: Batch, signature: Signature) -> dict[str, Tensor]:
    """The outputs of the model in torch, by the names of the signature."""
    output = run_model(lm, batch)
    vectors = {SENTENCE: gather_predictions(lm, output, batch).values} if SENTENCE in signature.outputs else {}
    return {name: vectors[name] if name in vectors else output[name] for name in signature.predictions}


def _batches(lm: LanguageModel) -> Iterator[Batch]:
    longest = max_positions(lm)
    for seed, (rows, length) in enumerate(SHAPES):
        batch = random_batch(lm, rows, length if longest is None else min(length, longest), seed)
        yield _pad(batch)
    if lm.tokenizer is not None:
        yield from batches(lm, _texts(lm), batch_size=TEXTS // 3, max_length=MAX_LENGTH)


def _texts(lm: LanguageModel) -> Corpus:
    texts = read(SOURCE, "dev").first(TEXTS)
    if lm.task is not ModelTask.MULTIPLE_CHOICE:
        return texts
    # The texts have no choices; the two before each take their place.
    rows = texts.examples
    return replace(
        texts,
        examples=tuple(
            replace(row, choices=(rows[number - 1].joined, rows[number - 2].joined)) for number, row in enumerate(rows)
        ),
    )


def _pad(batch: Batch) -> Batch:
    """Mask the last tokens: none in the first row, and one more in each following row, or each following choice."""
    mask = batch["attention_mask"].clone()
    for number, sequence in enumerate(mask.view(-1, mask.shape[-1])):
        sequence[max(1, len(sequence) - number) :] = 0
    return {**batch, "attention_mask": mask}


def _mask(lm: LanguageModel, outputs: Tensor, batch: Batch) -> Tensor:
    """The positions of outputs to compare: all tokens except padding; for a decoder, whose inputs have no mask, all."""
    mask = batch["attention_mask"].bool()
    by_token = outputs.dim() == 3 and TARGETS not in batch and lm.task is not ModelTask.SEQ2SEQ
    if (by_token or lm.task is ModelTask.QUESTION_ANSWERING) and outputs.shape[:2] == mask.shape:
        return mask
    return torch.ones(len(outputs), dtype=torch.bool)
