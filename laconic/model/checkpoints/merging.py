"""Merge a peft adapter into the matrices of its model, and check that the outputs stay the same."""

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.model import ties

TOKENS = 8
TOLERANCE = 1e-3
"""Largest difference relative to the largest output: float32 sums in another order."""


def untie_adapted(beside: Any) -> None:
    """Untie each pair of tied matrices of which one has an adapter.

    The adapter is added in place, so a tied matrix would change as well, which it does not while unmerged.

    Args:
        beside: a PeftModel.
    """
    tuned = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    model = beside.get_base_model()
    for target, source in model.all_tied_weights_keys.items():
        for name in (target, source):
            path, _, holds = name.rpartition(".")
            layer = model.get_submodule(path)
            if isinstance(layer, tuned):
                inner: nn.Module = layer.get_base_layer()
                setattr(inner, holds, nn.Parameter(getattr(inner, holds).detach().clone(), requires_grad=False))


def merge_adapter(beside: Any, source: str) -> PreTrainedModel:
    """Merge an adapter into its model, and check that the outputs stay the same.

    Args:
        beside: a PeftModel, with the adapter beside the matrices.
        source: the adapter, as errors name it.

    Raises:
        UserError: the merged model computes something else.
    """
    before = _outputs(beside)
    with warnings.catch_warnings():
        # It warns about ties, which `_tie` repairs.
        warnings.simplefilter("ignore")
        model: PreTrainedModel = beside.merge_and_unload(safe_merge=True)
    model.requires_grad_(True)
    _tie(model)
    after = _outputs(model)
    if not are_close(before, after):
        raise UserError(
            f"The adapter '{source}' cannot be merged into its model: merged by peft, it computes something else; "
            "give a model without it."
        )
    return model


def are_close(before: Tensor, after: Tensor) -> bool:
    """Whether two outputs are equal up to `TOLERANCE` and finite at the same places."""
    if before.shape != after.shape or not torch.equal(before.isfinite(), after.isfinite()):
        return False
    one, other = (outputs.nan_to_num(0, 0, 0) for outputs in (before, after))
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())


def _tie(model: PreTrainedModel) -> None:
    """Tie the matrices that are still equal, and untie the others, so that both are saved."""
    for target, source in dict(model.all_tied_weights_keys).items():
        one, other = model.get_parameter(target), model.get_parameter(source)
        if one is other:
            continue
        path, _, holds = target.rpartition(".")
        if torch.equal(one, other):
            setattr(model.get_submodule(path), holds, other)
        else:
            ties.untie(model, {path})
            model.config.tie_word_embeddings = False


@torch.no_grad()
def _outputs(model: Any) -> Tensor:
    """The first output of `model` for a few fixed random tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(rows, (2, TOKENS), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return model(**inputs)[0].double()
