"""Verify a saved model: load the folder with `from_pretrained` and compare it with the model in memory.

All modules must be equal, all tensors must be bitwise equal, and both models must give the same outputs for one short
row of tokens. Weights are loaded in their stored dtype, so that files are memory-mapped and not copied: the check reads
each byte once and runs both models on a few tokens. The loaded model runs on the CPU. If the model in memory is on
another device, which sums in another order, outputs are compared only if they are fp32.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from laconic.calibrate.passes import evaluating, forward, random_batch
from laconic.errors import UserError, reason_of
from laconic.formats.autotune import without_kernels
from laconic.model import Batch, LanguageModel
from laconic.model.predictions import ModelRunError
from laconic.model.stock import MODEL_ERRORS, copy_attention_type, differences, modules_by_path

LENGTH = 8
"""The number of tokens in the row."""
TOLERANCE = 1e-4
"""The tolerance for outputs, relative to the largest output. Another order of sums changes about 1e-6."""
ROUNDINGS = 8
"""The tolerance in units of the machine epsilon of the dtype, if that is larger."""


@torch.no_grad()
def verify_saved(lm: LanguageModel, stored: PreTrainedModel, folder: Path) -> None:
    """Load what `stored.save_pretrained(folder)` wrote and compare it with `stored`.

    Args:
        lm: the model that was saved, with its tokenizers and anatomy.
        stored: the model with weights in their stored dtype.
        folder: the folder that was written.

    Raises:
        UserError: the model does not run, the folder cannot be loaded, or the loaded model differs.
    """
    saved = replace(lm, model=stored, original=None)
    with _user_errors("cannot be loaded from the files that were written", "compress it in another way"):
        loaded = replace(saved, model=_load(stored, folder))
    expected, outputs = _outputs_of_both(saved, loaded)
    copy_attention_type(stored, loaded.model)
    for difference in differences(modules_by_path(stored), modules_by_path(loaded.model)):
        raise mismatch_error(str(difference))
    for name in _differing_tensors(stored, loaded.model):
        raise mismatch_error(f"'{name}' would have different values")
    if lm.device.type == "cpu" or expected.dtype == torch.float32:
        compare_outputs(expected, outputs)


def _outputs_of_both(saved: LanguageModel, loaded: LanguageModel) -> tuple[Tensor, Tensor]:
    """The outputs of both models; in fp32 if the class runs in no other dtype (DeBERTa keeps some biases in fp32)."""
    batch = random_batch(saved, 1, LENGTH)
    on_cpu = {name: tensor.cpu() for name, tensor in batch.items()}
    if saved.model.dtype != torch.float32:
        with suppress(*MODEL_ERRORS):
            return outputs_of(saved, batch).cpu(), outputs_of(loaded, on_cpu)
    origin = f"the config.json of '{saved.source}'" if saved.source else "its configuration"
    with _user_errors("does not run", f"look at {origin}, or do not compress the layer that the reason names"):
        expected = outputs_of(_to_float32(saved), batch).cpu()
    with _user_errors("does not run as it was written", "compress it in another way"):
        return expected, outputs_of(_to_float32(loaded), on_cpu)


def _to_float32(lm: LanguageModel) -> LanguageModel:
    if lm.model.dtype == torch.float32:
        return lm
    return replace(lm, model=torch.nn.Module.float(copy.deepcopy(lm.model)))


def _load(stored: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load the folder without a `dtype` argument, as users do, with the attention implementation of `stored`."""
    kernels: dict[str, Any] = {}
    if stored.config._attn_implementation is not None:
        kernels["attn_implementation"] = stored.config._attn_implementation
    return type(stored).from_pretrained(folder, **kernels)


def outputs_of(lm: LanguageModel, batch: Batch) -> Tensor:
    """The outputs that predictions are made from, with a fixed random seed for models that draw random numbers."""
    # Making kernels for one product would take longer than decoding the matrices.
    with evaluating(lm), without_kernels(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = forward(lm, batch)
    return torch.stack([output[name] for name in lm.task.output_names])


def _differing_tensors(saved: PreTrainedModel, loaded: PreTrainedModel) -> Iterator[str]:
    stored = loaded.state_dict()
    for name, tensor in saved.state_dict().items():
        if not _equal(tensor, stored[name], exactly=name not in (saved._keys_to_ignore_on_save or ())):
            yield name
    # Non-persistent buffers are not in the file: the class computes them.
    computed = dict(loaded.named_buffers())
    for name, tensor in saved.named_buffers():
        if name not in stored and name in computed and not _equal(tensor, computed[name], exactly=False):
            yield name


def _equal(tensor: Tensor, loaded: Tensor, exactly: bool) -> bool:
    """Whether two tensors are equal. `tensor` may have a wider dtype than the file."""
    tensor, wide = tensor.cpu(), torch.promote_types(tensor.dtype, loaded.dtype)
    if torch.equal(tensor.to(wide), loaded.to(wide)):
        return True
    tolerance = 0.0 if exactly or not tensor.is_floating_point() else ROUNDINGS * torch.finfo(loaded.dtype).eps
    return torch.allclose(tensor.to(wide), loaded.to(wide), rtol=tolerance, atol=tolerance, equal_nan=True)


def compare_outputs(expected: Tensor, outputs: Tensor) -> None:
    """Check that a saved model computes the outputs of the model in memory.

    Args:
        expected: the outputs in memory.
        outputs: those of the saved model.

    Raises:
        UserError: they differ by more than rounding.
    """
    tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(expected.dtype).eps)
    # Values that overflow in both models count as equal.
    finite, other = (tensor.double().nan_to_num(0, 0, 0) for tensor in (expected, outputs))
    largest = finite.abs().max().item()
    error = (finite - other).abs().max().item()
    if error > tolerance * largest or not torch.equal(expected.isfinite(), outputs.isfinite()):
        raise mismatch_error(f"its outputs would be off by {error / max(largest, 1e-30):.2%} of the largest")


@contextmanager
def _user_errors(problem: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except MODEL_ERRORS as error:
        reason = error.reason if isinstance(error, ModelRunError) else reason_of(error)
        raise UserError(f"The model {problem}, and was not saved: {reason}; {remedy}.") from error


def mismatch_error(difference: str) -> UserError:
    """The error for a saved model that differs from the one in memory; `difference` is a clause."""
    return UserError(
        f"The saved model would differ from this one after loading, and was removed: {difference}; "
        "compress it in another way."
    )
