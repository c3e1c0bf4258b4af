"""Where a model has other shapes than its class makes of the configuration, as entries of a structure.

Three kinds: `resized` is a plain linear of another shape, or T5's table of position biases; `attributes` are numbers of
a module that holds linears, such as the size of its heads, with the shapes of its own parameters; `mapped` is a norm
followed by what stands for dropped blocks.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Format, LinearReplacement
from laconic.model.width import empty_linear

RESIZED = "resized"
ATTRIBUTES = "attributes"
MAPPED = "mapped"


def deviations(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Path → entry of every module of `model` that has another shape than in `plain`, its stock model."""
    there = dict(plain.named_modules())
    return {
        name: entry
        for name, module in model.named_modules()
        if name in there
        for entry in _entries(module, there[name])
    }


def restore(model: PreTrainedModel, path: str, name: str, entry: Mapping[str, Any]) -> None:
    """Give the module at `path` of `model` what the `entry` of that `name` says; new tensors are on the meta device.

    Raises:
        UserError: it cannot have that.
    """
    module = model.get_submodule(path)
    match dict(entry):
        case {"kind": "resized", "shape": [int(rows), int(columns)], **none} if not none and rows > 0 < columns:
            if isinstance(module, (nn.Linear, Conv1D)):
                model.set_submodule(path, empty_linear(module, (rows, columns)))
                return
            if isinstance(module, nn.Embedding):
                model.set_submodule(path, nn.Embedding(rows, columns, device="meta"))
                return
        case {"kind": "attributes", "values": dict(values), **more} if more.keys() <= {"parameters"}:
            shapes = more.get("parameters", {})
            if isinstance(shapes, dict) and _set(module, values, shapes):
                return
        case {"kind": "mapped", "features": int(features), "matrix": bool(matrix), **none} if not none:
            # In the place of a norm, which holds vectors of this size and nothing else.
            if {tuple(part.shape) for part in module.parameters()} == {(features,)}:
                with torch.device("meta"):
                    model.set_submodule(path, LinearReplacement(module, features, matrix))
                return
    raise UserError(
        f"quantization_config.structure['{name}'] does not fit the {type(module).__name__} that is there; "
        "take the config.json that was saved with the weights."
    )


def _set(module: nn.Module, values: Mapping[str, Any], shapes: Mapping[str, Any]) -> bool:
    """Give `module` these numbers and parameters of these shapes; False where it has none of the name."""
    known = values.keys() <= _numbers(module).keys() and shapes.keys() <= _own_shapes(module).keys()
    if not known or not all(isinstance(shape, list) for shape in shapes.values()):
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
        # What stands in the place of a linear says its own shape.
        return
    if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)) and isinstance(plain, (nn.Linear, Conv1D, nn.Embedding)):
        if module.weight.shape != plain.weight.shape:
            shape = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
            yield {"kind": RESIZED, "shape": list(shape)}
    # Only where linears are: other modules count things at run time.
    elif any(isinstance(child, (nn.Linear, Conv1D, Format)) for child in module.children()):
        changed, reshaped = _differing(_numbers, module, plain), _differing(_own_shapes, module, plain)
        if changed or reshaped:
            yield {"kind": ATTRIBUTES, "values": changed, **({"parameters": reshaped} if reshaped else {})}


def _differing(look: Callable[[nn.Module], dict[str, Any]], module: nn.Module, plain: nn.Module) -> dict[str, Any]:
    """What `look` finds in both, where it is not the same."""
    here, there = look(module), look(plain)
    return {key: here[key] for key in sorted(here.keys() & there.keys()) if here[key] != there[key]}


def _numbers(module: nn.Module) -> dict[str, int]:
    return {key: value for key, value in vars(module).items() if type(value) is int}


def _own_shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
