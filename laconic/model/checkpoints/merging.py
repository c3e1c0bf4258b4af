"""Adding an adapter to the matrices that it lies beside, so that the model computes the same without it."""

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
"""Of the largest output: what float32 may differ by where sums are taken in another order."""


def untie_adapted(beside: Any) -> None:
    """Give each of two tied matrices numbers of its own, where an adapter lies beside one of them.

    The adapter is added in place: what is tied to the matrix would change with it, as it does not unmerged.

    beside: a PeftModel.
    """
    tuned = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    model = beside.get_base_model()
    for target, source in model.all_tied_weights_keys.items():
        for name in (target, source):
            place, _, holds = name.rpartition(".")
            layer = model.get_submodule(place)
            if isinstance(layer, tuned):
                inner: nn.Module = layer.get_base_layer()
                setattr(inner, holds, nn.Parameter(getattr(inner, holds).detach().clone(), requires_grad=False))


def merge_adapter(beside: Any, source: str) -> PreTrainedModel:
    """The model with its adapter merged, once it is known to compute the same as `beside`, a PeftModel.

    Raises:
        UserError: it does not.
    """
    before = _outputs(beside)
    with warnings.catch_warnings():
        # Of ties it says what `_tie` settles.
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
    """Whether two outputs are equal up to `TOLERANCE`, and are finite at the same places."""
    if before.shape != after.shape or not torch.equal(before.isfinite(), after.isfinite()):
        return False
    one, other = (outputs.nan_to_num(0, 0, 0) for outputs in (before, after))
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())


def _tie(model: PreTrainedModel) -> None:
    """Tie again what is still equal, and declare apart what is not, so that it is saved twice."""
    for target, source in dict(model.all_tied_weights_keys).items():
        one, other = model.get_parameter(target), model.get_parameter(source)
        if one is other:
            continue
        place, _, holds = target.rpartition(".")
        if torch.equal(one, other):
            setattr(model.get_submodule(place), holds, other)
        else:
            ties.untie(model, {place})
            model.config.tie_word_embeddings = False


@torch.no_grad()
def _outputs(model: Any) -> Tensor:
    """What `model` computes of a few tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(rows, (2, TOKENS), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return model(**inputs)[0].double()
