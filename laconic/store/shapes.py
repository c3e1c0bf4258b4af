"""Entries of a structure for modules whose shape differs from the one that the class builds from the configuration.

There are three kinds of entries. `resized` is for a plain linear or an embedding table (T5's position biases) with
another shape. `attributes` is for a module that contains linears: it has changed integers, such as the head size, and
the shapes of the module's own parameters. `mapped` is for a norm that is followed by the linear map or the bias that
replaces dropped blocks.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Format, LinearReplacement
from laconic.model.enumeration import is_below
from laconic.model.width import empty_linear

RESIZED = "resized"
ATTRIBUTES = "attributes"
MAPPED = "mapped"


def changed_shapes(model: PreTrainedModel, plain: PreTrainedModel, path: str = "") -> dict[str, dict[str, Any]]:
    """The entries of all modules whose shape differs from the stock model.

    Args:
        model: the model.
        plain: its stock model, as `laconic.model.stock.build_stock` builds it, with or without weights.
        path: the path of the part whose modules are compared; "" is the whole model.

    Returns:
        The entries by the path of the module. Modules that only one of the two models has are left out.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from laconic.model.stock import build_stock
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
        >>> model.pooler.dense = nn.Linear(8, 5)
        >>> changed_shapes(model, build_stock(model))
        {'pooler.dense': {'kind': 'resized', 'shape': [5, 8]}}
    """
    stock_modules = dict(plain.named_modules())
    return {
        name: entry
        for name, module in model.named_modules()
        if name in stock_modules and is_below(name, path)
        for entry in _entries(module, stock_modules[name])
    }


def apply_shape(model: PreTrainedModel, path: str, name: str, entry: Mapping[str, Any]) -> None:
    """Give the module at `path` the shape that `entry` describes; new tensors are on the meta device.

    Args:
        model: the model to change in place.
        path: the path of the module in `model`.
        name: its path in the structure, for error messages. It differs from `path` if the structure was saved by a
            sibling class, such as one with another head.
        entry: an entry of `changed_shapes`.

    Raises:
        UserError: the entry does not fit the module.
    """
    module = model.get_submodule(path)
    match dict(entry):
        case {"kind": "resized", "shape": [int(rows), int(columns)], **rest} if not rest and rows > 0 < columns:
            if isinstance(module, (nn.Linear, Conv1D)):
                model.set_submodule(path, empty_linear(module, (rows, columns)))
                return
            if isinstance(module, nn.Embedding):
                model.set_submodule(path, nn.Embedding(rows, columns, device="meta"))
                return
        case {"kind": "attributes", "values": dict(values), **rest} if rest.keys() <= {"parameters"}:
            shapes = rest.get("parameters", {})
            if isinstance(shapes, dict) and _set_attributes(module, values, shapes):
                return
        case {"kind": "mapped", "features": int(features), "matrix": bool(matrix), **rest} if not rest:
            # All parameters of a norm are vectors of this size.
            if {tuple(parameter.shape) for parameter in module.parameters()} == {(features,)}:
                with torch.device("meta"):
                    model.set_submodule(path, LinearReplacement(module, features, matrix))
                return
    raise UserError(
        f"quantization_config.structure['{name}'] does not fit the {type(module).__name__} that is there; "
        "take the config.json that was saved with the weights."
    )


def _set_attributes(module: nn.Module, values: Mapping[str, Any], shapes: Mapping[str, Any]) -> bool:
    """Set integers and parameter shapes of a module; False if a name does not exist or a value is not positive."""
    exist = values.keys() <= _integers(module).keys() and shapes.keys() <= _parameter_shapes(module).keys()
    if not exist or not all(isinstance(shape, list) for shape in shapes.values()):
        return False
    sizes = [size for shape in shapes.values() for size in shape]
    if not all(type(number) is int and number > 0 for number in (*values.values(), *sizes)):
        return False
    for key, value in values.items():
        setattr(module, key, value)
    for key, shape in shapes.items():
        module.register_parameter(key, nn.Parameter(torch.empty(shape, device="meta")))
    return True


def _entries(module: nn.Module, plain: nn.Module) -> Iterator[dict[str, Any]]:
    if isinstance(module, LinearReplacement):
        yield {"kind": MAPPED, "features": module.features, "matrix": module.matrix is not None}
        return
    if isinstance(module, Format):
        # The entry of a format contains its shape.
        return
    if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)) and isinstance(plain, (nn.Linear, Conv1D, nn.Embedding)):
        if module.weight.shape != plain.weight.shape:
            shape = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
            yield {"kind": RESIZED, "shape": list(shape)}
    else:
        # Only integers of modules around linears: those of others may change at run time, such as counters.
        values = _differences(_integers, module, plain) if _holds_linears(module) else {}
        # Norms of heads, as in Cohere, have shapes too.
        shapes = _differences(_parameter_shapes, module, plain)
        if values or shapes:
            yield {"kind": ATTRIBUTES, "values": values, **({"parameters": shapes} if shapes else {})}


def _holds_linears(module: nn.Module) -> bool:
    """Whether a linear is a child of the module, or of one of its children."""
    inner = (part for child in module.children() for part in (child, *child.children()))
    return any(isinstance(part, (nn.Linear, Conv1D, Format)) for part in inner)


def _differences(read: Callable[[nn.Module], dict[str, Any]], module: nn.Module, plain: nn.Module) -> dict[str, Any]:
    """The items of `read(module)` whose value differs in `read(plain)`; keys that one of them lacks are left out."""
    values, stock_values = read(module), read(plain)
    return {key: values[key] for key in sorted(values.keys() & stock_values.keys()) if values[key] != stock_values[key]}


def _integers(module: nn.Module) -> dict[str, int]:
    return {key: value for key, value in vars(module).items() if type(value) is int}


def _parameter_shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
