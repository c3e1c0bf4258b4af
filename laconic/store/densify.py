"""The way back: a plain dense model of the stock class, which loads anywhere and computes the same."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.model.heads import can_shrink, find_attentions, resize_heads, zero_padding_maps
from laconic.model.prunable_group import prunable_groups
from laconic.model.task import check_pretrained
from laconic.model.width import EMPTY, empty_linear, keep_parts
from laconic.store.biases import enable_biases
from laconic.store.shapes import MAPPED, deviations
from laconic.store.structure import formats, outermost


def materialize(model: PreTrainedModel) -> PreTrainedModel:
    """A dense copy of `model`: every format multiplied out, with no trace of laconic in it or in what it saves.

    Raises:
        UserError: it is no model of transformers, or has a shape that cannot grow back.
    """
    dense = copy.deepcopy(check_pretrained(model, or_named=False))
    densify(dense)
    forget(dense)
    return dense


def forget(model: PreTrainedModel) -> None:
    """Remove what marks `model` as one that laconic saves."""
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(mark, None)
    vars(model.config).pop("quantization_config", None)


def densify(model: PreTrainedModel) -> None:
    """Give every format and every shape of `model` back to what its class has there, in place.

    Raises:
        UserError: there is a shape that cannot grow back.
    """
    replaced = outermost(formats(model))
    plain = enable_biases(model, [name for name in replaced if _bias(model, name) is not None])
    for name, places in replaced.items():
        format = model.get_submodule(name)
        assert isinstance(format, Format)
        filled = [_filled(plain, place, format) for place in places]
        for place, module in zip(places, filled, strict=True):
            module.weight = filled[0].weight
            model.set_submodule(place, module.train(model.training))
    _widen(model, plain)
    _tie_as(model, plain)


def _bias(model: PreTrainedModel, name: str) -> Tensor | None:
    format = model.get_submodule(name)
    assert isinstance(format, Format)
    return format.bias


def _widen(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Zeros in every head up to the size that it has in `plain`, heads and channels of zeros up to their number there:
    the same function, at full size."""
    if deviations(model, plain):
        lm, whole = LanguageModel.of(model), LanguageModel.of(plain)
        if can_shrink(lm.anatomy):
            for attention, full in zip(find_attentions(lm), find_attentions(whole), strict=True):
                if attention.size != full.size:
                    resize_heads(lm, attention, zero_padding_maps(attention, full.size))
        full = {inner.name: inner.count for inner in prunable_groups(whole)}
        for inner in prunable_groups(lm):
            if inner.count < full[inner.name]:
                keep_parts(lm, inner, [*range(inner.count), *[EMPTY] * (full[inner.name] - inner.count)])
    left = deviations(model, plain)
    if mapped := [name for name, entry in left.items() if entry["kind"] == MAPPED]:
        what = "linear map" if left[mapped[0]]["matrix"] else "bias"
        raise UserError(
            f"The norm '{mapped[0]}' has a {what} behind it that stands for dropped blocks, so no stock model can hold "
            "it; shorten with replace: nothing for one that can."
        )
    if narrow := list(left):
        raise UserError(
            f"The layer '{narrow[0]}' has a shape that its class cannot give it, so no stock model can hold it."
        )


@torch.no_grad()
def _filled(plain: PreTrainedModel, place: str, format: Format) -> nn.Module:
    """The module of the stock model at `place`, with the matrix and the bias of `format`."""
    module, dense, bias = plain.get_submodule(place), format.dense().detach(), format.bias
    if isinstance(module, (nn.Linear, Conv1D)):
        if bias is not None and module.bias is None:
            raise UserError(
                f"The layer '{place}' has a bias and its class has none there, so no stock model can hold it."
            )
        # The format may stand for a linear that had been resized before.
        module = empty_linear(module, format.shape)
    module = module.to_empty(device=dense.device)
    if isinstance(module, nn.Embedding):
        # Its scale may be a buffer that no file holds (Gemma's), which transformers fills with the weights.
        plain._init_weights(module)
        weight = (dense.T.double() / _scale(module)).to(dense.dtype)
    else:
        weight = dense.T if isinstance(module, Conv1D) else dense
    module.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    elif isinstance(module, (nn.Linear, Conv1D)) and module.bias is not None:
        # Of a dropped part, whose class has one there.
        module.bias.zero_()
    return module


def _scale(module: nn.Embedding) -> Tensor:
    """What a word embedding multiplies its rows by (BART's √width), seen by looking up a one."""
    module.double().weight.fill_(1)
    return module(torch.zeros(1, dtype=torch.long, device=module.weight.device))[0, 0]


def _tie_as(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Tie `model` as its class would, or say in its configuration that it is not tied."""
    declared = plain.all_tied_weights_keys
    broken = {t for t, s in declared.items() if model.get_parameter(t) is not model.get_parameter(s)}
    if broken and _can_untie(model.config):
        model.config.tie_word_embeddings = False
        # The flag is about all ties of a model, so whatever is still one tensor becomes several.
        for target in declared.keys() - broken:
            parent, _, name = target.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Parameter(model.get_parameter(target).detach().clone()))
        broken = set(declared)
    # Where the flag has another meaning (T5), both tensors lie in the file, and transformers ties only equal ones.
    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            prefix = f"{path}." if path else ""
            for ties in ("_tied_weights_keys", "all_tied_weights_keys"):
                of_class: dict[str, str] = getattr(plain.get_submodule(path), ties) or {}
                setattr(part, ties, {t: s for t, s in of_class.items() if prefix + t not in broken})


def _can_untie(config: PreTrainedConfig) -> bool:
    """Whether `tie_word_embeddings: false` is read back as that and nothing else."""
    wanted = {**config.to_dict(), "tie_word_embeddings": False}
    return type(config).from_dict(wanted).to_dict() == wanted
