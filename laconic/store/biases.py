"""Biases that a class has no place for by default, and by a switch of its configuration has.

A layer that makes up for something by a bias may stand where its class has none: the down projection of a Llama has
one only with `mlp_bias`. Where such a switch gives a place to a bias, the model is still one of its class; the other
layers that get one along with it have zeros there.
"""

import copy
from collections.abc import Collection, Iterable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.formats import Dense
from laconic.model.stock import build_empty, build_stock
from laconic.model.width import empty_linear
from laconic.store.structure import formats, outermost

Switch = tuple[str, str]
"""The attribute of a configuration that holds another one, or nothing for the configuration itself; and its own."""


def enable_biases(model: PreTrainedModel, layers: Collection[str]) -> PreTrainedModel:
    """Switch on what gives the layers of these paths a bias in the class of `model`, where anything does.

    Linears that get one along with them are given zeros. Returns the stock model, without weights.
    """
    plain = build_stock(model)
    missing = {path for path in layers if not _has_bias(plain, path)}
    for switch in _switches(model.config) if missing else ():
        config = copy.deepcopy(model.config)
        _flip(config, switch)
        other = build_empty(type(model), config)
        gained = _gained(plain, other)
        if gained is not None and gained & missing:
            _flip(model.config, switch)
            plain, missing = other, missing - gained
            for path in gained:
                _fill(model.get_submodule(path))
    return plain


def dense_as_linears(model: PreTrainedModel) -> None:
    """Make plain linears of the `Dense` of `model` that its class has a place for, by a switch or without one."""
    places = outermost(formats(model))
    dense = {path: part for path in places if isinstance(part := model.get_submodule(path), Dense)}
    if not dense:
        return
    plain = enable_biases(model, [path for path, part in dense.items() if part.bias is not None])
    for path, part in dense.items():
        like = plain.get_submodule(path)
        if not isinstance(like, (nn.Linear, Conv1D)) or (part.bias is None) != (like.bias is None):
            continue
        linear = empty_linear(like, part.shape)
        weight = part.linear.weight.T if isinstance(linear, Conv1D) else part.linear.weight
        linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=weight.requires_grad)
        if part.bias is not None:
            linear.bias = nn.Parameter(part.bias.detach(), requires_grad=part.bias.requires_grad)
        for place in places[path]:
            model.set_submodule(place, linear.train(part.training))


def _switches(config: PreTrainedConfig) -> Iterable[Switch]:
    """Every number that is true or false and says of a bias whether it is there."""
    parts = {"": config}
    text = config.get_text_config()
    parts |= {name: part for name, part in vars(config).items() if part is text}
    for path, part in parts.items():
        for name, value in vars(part).items():
            if isinstance(value, bool) and "bias" in name.split("_"):
                yield path, name


def _flip(config: PreTrainedConfig, switch: Switch) -> None:
    path, name = switch
    part = getattr(config, path) if path else config
    setattr(part, name, not getattr(part, name))


def _gained(plain: PreTrainedModel, other: PreTrainedModel) -> set[str] | None:
    """The linears that have a bias in `other` alone; None where it differs in anything else."""
    before, after = ({name: part.shape for name, part in one.named_parameters()} for one in (plain, other))
    if any(after.get(name) != shape for name, shape in before.items()):
        return None
    paths = {name.rpartition(".")[0] for name in after.keys() - before.keys()}
    return paths if all(_has_bias(other, path) for path in paths) else None


def _has_bias(plain: PreTrainedModel, path: str) -> bool:
    module = plain.get_submodule(path)
    return isinstance(module, (nn.Linear, Conv1D)) and module.bias is not None


def _fill(module: nn.Module) -> None:
    """Zeros for the bias of a plain linear; a format says itself whether it has one."""
    if isinstance(module, nn.Linear) and module.bias is None:
        module.bias = nn.Parameter(torch.zeros_like(module.weight[:, 0]), requires_grad=module.weight.requires_grad)
