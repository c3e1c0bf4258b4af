"""A folder that was just written, loaded as a reader will load it, and held against the model in memory.

All modules must be alike and every tensor the same, bit for bit, and on one short row of tokens both must say the same.
A file is mapped into memory, not copied, as the model is loaded in the dtype that it is stored in: on the CPU this
costs a look at every byte and two runs over a few tokens. Where the model is on another device, what was written is run
on the CPU, which rounds otherwise in another order: then only fp32 outputs are compared.
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
from laconic.model import Batch, LanguageModel
from laconic.model.predictions import ModelRunError
from laconic.model.stock import MODEL_ERRORS, copy_attention_type, differences, modules_by_path

LENGTH = 8
"""Tokens of the row."""
TOLERANCE = 1e-4
"""The largest difference of an output, as part of the largest output: sums in another order come to some 1e-6."""
ROUNDINGS = 8
"""And in so many roundings to the dtype that is computed in, where that is coarser."""


@torch.no_grad()
def verify_saved(lm: LanguageModel, stored: PreTrainedModel, folder: Path) -> None:
    """Load what `stored.save_pretrained(folder)` wrote and compare it with `stored`.

    Args:
        lm: what was saved.
        stored: its model, in the dtype that it is stored in.
        folder: where it was written.

    Raises:
        UserError: the model does not run, or what was written cannot be loaded, or is another model.
    """
    ours = replace(lm, model=stored, original=None)
    with _failing("cannot be loaded from what was written of it", "compress it in another way"):
        theirs = replace(ours, model=_loaded(stored, folder))
    said, read = _both(ours, theirs)
    copy_attention_type(stored, theirs.model)
    for difference in differences(modules_by_path(stored), modules_by_path(theirs.model)):
        raise _other(str(difference))
    for name in _other_tensors(stored, theirs.model):
        raise _other(f"'{name}' would have other numbers")
    if lm.device.type == "cpu" or said.dtype == torch.float32:
        _compare(said, read)


def _both(ours: LanguageModel, theirs: LanguageModel) -> tuple[Tensor, Tensor]:
    """What both models say, in fp32 where the class runs in no other dtype (DeBERTa's keeps some biases in fp32)."""
    batch = random_batch(ours, 1, LENGTH)
    on_cpu = {name: tensor.cpu() for name, tensor in batch.items()}
    if ours.model.dtype != torch.float32:
        with suppress(*MODEL_ERRORS):
            return _outputs(ours, batch).cpu(), _outputs(theirs, on_cpu)
    origin = f"the config.json of '{ours.source}'" if ours.source else "its configuration"
    with _failing("does not run as it is now", f"look at {origin}, or leave what that names as it was"):
        said = _outputs(_in_float32(ours), batch).cpu()
    with _failing("does not run as it was written", "compress it in another way"):
        return said, _outputs(_in_float32(theirs), on_cpu)


def _in_float32(lm: LanguageModel) -> LanguageModel:
    if lm.model.dtype == torch.float32:
        return lm
    return replace(lm, model=torch.nn.Module.float(copy.deepcopy(lm.model)))


def _loaded(stored: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """As a reader does, who says no dtype; which kernels an attention runs on is no part of a checkpoint."""
    kernels: dict[str, Any] = {}
    if stored.config._attn_implementation is not None:
        kernels["attn_implementation"] = stored.config._attn_implementation
    return type(stored).from_pretrained(folder, **kernels)


def _outputs(lm: LanguageModel, batch: Batch) -> Tensor:
    """Logits, or the last hidden states; what a model draws at random is the same at every call."""
    with evaluating(lm), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = forward(lm, batch)
    return output["logits"] if "logits" in output else output["last_hidden_state"]


def _other_tensors(ours: PreTrainedModel, theirs: PreTrainedModel) -> Iterator[str]:
    written = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        if not _equal(tensor, written[name], exactly=name not in (ours._keys_to_ignore_on_save or ())):
            yield name
    # These no file holds: the class computes them.
    computed = dict(theirs.named_buffers())
    for name, tensor in ours.named_buffers():
        if name not in written and name in computed and not _equal(tensor, computed[name], exactly=False):
            yield name


def _equal(one: Tensor, other: Tensor, exactly: bool) -> bool:
    """`one` may be in a wider dtype than it is read in."""
    one, wide = one.cpu(), torch.promote_types(one.dtype, other.dtype)
    if torch.equal(one.to(wide), other.to(wide)):
        return True
    off = 0.0 if exactly or not one.is_floating_point() else ROUNDINGS * torch.finfo(other.dtype).eps
    return torch.allclose(one.to(wide), other.to(wide), rtol=off, atol=off, equal_nan=True)


def _compare(said: Tensor, read: Tensor) -> None:
    allowed = max(TOLERANCE, ROUNDINGS * torch.finfo(said.dtype).eps)
    # Where both overflow they say the same.
    one, other = (part.double().nan_to_num(0, 0, 0) for part in (said, read))
    largest = one.abs().max().item()
    error = (one - other).abs().max().item()
    if error > allowed * largest or not torch.equal(said.isfinite(), read.isfinite()):
        raise _other(f"its outputs would be off by {error / max(largest, 1e-30):.2%} of the largest")


@contextmanager
def _failing(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except MODEL_ERRORS as error:
        reason = error.reason if isinstance(error, ModelRunError) else reason_of(error)
        raise UserError(f"The model {what}, and was not saved: {reason}; {remedy}.") from error


def _other(what: str) -> UserError:
    return UserError(
        f"What was written of the model would be loaded as another one, and was removed: {what}; "
        "compress it in another way."
    )
