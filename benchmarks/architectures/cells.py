"""The cells of the sweep: what is done with a model, and how the result is checked.

A cell works if the operation runs, the result is saved and loads with equal tensors and outputs, it computes the
function that it should, and no more than a tenth of the matrices in the blocks stays as it was without a word.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

import laconic
from benchmarks.architectures import functions
from benchmarks.architectures.classes import ModelClass
from benchmarks.architectures.coverage import matrices_in_blocks, share_compressed
from benchmarks.architectures.inputs import letter_tokenizer, outputs_of, write_data
from laconic.errors import UserError
from laconic.testing.formats import expect

WORKS, PART, REFUSED, FAILED, ABSENT = "works", "part", "refused", "failed", "absent"
LEAST_SHARE = 0.9
"""The share of the matrices in the blocks that a method must compress, or say that it does not."""
FROM_FOLDER = ("rtn:bits=8",)
"""The methods whose model is read from a folder; the others get a model in memory."""
MUST_ALLOW = "allow_dense"
"""The word in the error of a model of which a large part would stay dense."""


@dataclass(frozen=True)
class Cell:
    """The result of one operation on one class.

    Args:
        state: `works`, `part` (the other matrices stay dense, and it says so), `refused`, `failed`, or `absent` (the
            class has nothing for the operation).
        sentence: the error, or for `failed` the traceback.
        share: the share of the matrices in the blocks that was compressed; None for other operations.
    """

    state: str
    sentence: str = ""
    share: float | None = None


Operation = Callable[[ModelClass, Path], Cell]


def run_cell(operation: Operation, model_class: ModelClass) -> Cell:
    """Run one operation; a `UserError` is a refusal, and every other exception is raised."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return operation(model_class, Path(folder))
        except UserError as error:
            return Cell(REFUSED, str(error))


def inspect(model_class: ModelClass, folder: Path) -> Cell:
    """Inspect the model, and check the shared inputs and the scales that norms absorb."""
    model = model_class.build()
    laconic.inspect(model)
    functions.check_shared_inputs(model)
    functions.check_scales(model)
    return Cell(WORKS)


def compress(method: str, model_class: ModelClass, folder: Path) -> Cell:
    """Compress by a method of one matrix; if a large part would stay dense, compress the rest."""
    try:
        return _compress(method, model_class, folder, allow_dense=False)
    except UserError as error:
        if MUST_ALLOW not in str(error):
            raise
        rest = _compress(method, model_class, folder / "rest", allow_dense=True)
        return Cell(PART, str(error), rest.share)


def _compress(method: str, model_class: ModelClass, folder: Path, allow_dense: bool) -> Cell:
    folder.mkdir(exist_ok=True)
    model = model_class.build()
    matrices = matrices_in_blocks(model_class.build())
    if method in FROM_FOLDER:
        model.save_pretrained(folder / "original")
    result = _apply(model, method, folder, allow_dense=allow_dense)
    share = share_compressed(matrices, set(result.sites))
    expect(allow_dense or share >= LEAST_SHARE, f"compressed without a word: only {share:.0%} of the blocks")
    _check_reload(result, folder)
    return Cell(WORKS, share=share)


def narrow(part: str, model_class: ModelClass, folder: Path) -> Cell:
    """Narrow a model half of whose heads or channels are dead: its outputs must not change.

    The function without some experts is not compared here: their tokens go to the others, so it is no other form of the
    original.
    """
    if part == "experts" and not model_class.has_experts:
        return Cell(ABSENT)
    model = model_class.build()
    functions.kill_half(model, part)
    before = outputs_of(model)
    result = _apply(model, f"narrow:{part}=0.5,multiple=1", folder)
    if part != "experts":
        functions.check_equal(outputs_of(result.model), before, f"narrow:{part} of dead {part}")
    _check_reload(result, folder)
    return Cell(WORKS)


def shorten(model_class: ModelClass, folder: Path) -> Cell:
    """Drop a block: the outputs must be those of the model in which it is skipped."""
    model = model_class.build()
    original = model_class.build()
    result = _apply(model, "shorten:drop=1", folder)
    with functions.skipping(original, result.record.changes.dropped[0]):
        expected = outputs_of(original)
    functions.check_equal(outputs_of(result.model), expected, "shorten beside skipped blocks")
    _check_reload(result, folder)
    return Cell(WORKS)


def shrink_heads(model_class: ModelClass, folder: Path) -> Cell:
    """Make heads smaller; heads that zeros make larger must not change the outputs."""
    functions.check_larger_heads(model_class.build())
    _check_reload(_apply(model_class.build(), "shrink-heads:size=5", folder), folder)
    return Cell(WORKS)


def evaluate(model_class: ModelClass, folder: Path) -> Cell:
    """Compare the loss of a compressed model with the original on rows of text."""
    model, original = model_class.build(), model_class.build()
    rows = write_data(model, folder)
    laconic.compress(model, "rtn:bits=8", targets="blocks", allow_dense=True)
    found = laconic.evaluate(
        model, f"fidelity:{rows}", against=original, tokenizer=letter_tokenizer(), batch=1, length=8
    )
    kl = None if found.fidelity is None else found.fidelity.kl
    expect(kl is not None and 0 <= kl < 1, f"the KL of 8 bits to the original is {kl}")
    return Cell(WORKS)


def export(model_class: ModelClass, folder: Path) -> Cell:
    """Write the model for onnxruntime, which compares its outputs with those of torch."""
    laconic.export(model_class.build(), "onnx", folder / "exported", tokenizer=letter_tokenizer())
    return Cell(WORKS)


OPERATIONS: Mapping[str, Operation] = {
    "inspect": inspect,
    **{name: partial(compress, line) for name, line in {
        "rtn": "rtn:bits=8", "gptq": "gptq:bits=4", "kfac-svd": "kfac-svd", "kfac-prune": "kfac-prune",
    }.items()},
    "heads": partial(narrow, "heads"),
    "channels": partial(narrow, "channels"),
    "experts": partial(narrow, "experts"),
    "shorten": shorten,
    "shrink-heads": shrink_heads,
    "evaluate": evaluate,
    "export": export,
}  # fmt: skip
"""The operations by the heading of their column."""


def _apply(model: PreTrainedModel, method: str, folder: Path, allow_dense: bool = False) -> Any:
    rows = write_data(model, folder)
    stored = folder / "original"
    return laconic.compress(
        stored if stored.exists() else model, method, data=str(rows), tokenizer=letter_tokenizer(), batch_size=4,
        max_length=24, allow_dense=allow_dense,
    )  # fmt: skip


def _check_reload(result: Any, folder: Path) -> None:
    """Save the result and load it by its class: tensors and outputs must be equal."""
    model = result.model
    result.save(folder / "saved")
    again = type(model).from_pretrained(folder / "saved")
    before, after = model.state_dict(), again.state_dict()
    different = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    expect(before.keys() == after.keys() and not different, f"reloaded with other tensors: {different[:3]}")
    functions.check_equal(outputs_of(again), outputs_of(model), "the reloaded model")
