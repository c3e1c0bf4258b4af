"""Layers of experts in a saved model: their entry in the structure, their placeholders, and their dense form.

A compressed model has an `ExpertLayer` in place of each module of experts in which a stack is compressed. The structure
has an entry `{"kind": "experts"}` for the layer, and one for each compressed stack in it. transformers stores the
experts of some models one by one and joins them when it loads them; the tensors of stacks are stored as they are.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.errors import UserError
from laconic.formats import DenseExpertStack, ExpertLayer, dense_weight
from laconic.formats.expert_layer import is_experts

EXPERTS = "experts"
"""The kind of the entry of a layer of experts."""
CONVERSIONS = "_weight_conversions"
"""The attribute of a model by which transformers converts its tensors when it saves them."""


def find_expert_layers(model: nn.Module) -> dict[str, ExpertLayer]:
    """Every layer of experts with modules as stacks, by path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ExpertLayer)}


def insert_expert_layer(model: PreTrainedModel, path: str, name: str) -> None:
    """Put an `ExpertLayer` in place of the module of experts at `path`.

    Args:
        model: the model, changed in place.
        path: the path of the module.
        name: its path in the structure, for error messages.

    Raises:
        UserError: the module there has no experts.
    """
    module = model.get_submodule(path)
    if not is_experts(module):
        raise UserError(
            f"quantization_config.structure['{name}'] does not fit the {type(module).__name__} that is there; "
            "take the config.json that was saved with the weights."
        )
    if not isinstance(module, ExpertLayer):
        model.set_submodule(path, ExpertLayer(module))


def placeholders(model: PreTrainedModel) -> dict[str, Tensor]:
    """A tensor without elements under the name of each parameter that a stack replaced.

    Without laconic, transformers then refuses the checkpoint with a size mismatch, and does not initialise the experts
    with random numbers.
    """
    layers = find_expert_layers(model).items()
    return {f"{path}.{name}": torch.empty(0, dtype=model.dtype) for path, layer in layers for name in layer.stacks()}


def is_placeholder(model: PreTrainedModel, tensor: str) -> bool:
    """Whether a tensor of a file is one of the placeholders, with or without the prefix of the base model."""
    prefix = f"{model.base_model_prefix}."
    names = {name.removeprefix(prefix) for name in placeholders(model)}
    return tensor.removeprefix(prefix) in names


def store_stacks_as_they_are(model: PreTrainedModel) -> None:
    """Make `save_pretrained` write the tensors of a model with expert layers under the names that they have in it."""
    if find_expert_layers(model):
        # The conversion of the class would split the tensors of each stack into one for each expert.
        vars(model)[CONVERSIONS] = []


def store_experts_one_by_one(model: PreTrainedModel) -> None:
    """Make `save_pretrained` write experts as the class of the model does: undo `store_stacks_as_they_are`."""
    vars(model).pop(CONVERSIONS, None)


@torch.no_grad()
def densify_experts(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Replace each layer of experts by the module of its class, with dense matrices, in place.

    Args:
        model: the compressed model.
        plain: its stock model, on the meta device.
    """
    layers = find_expert_layers(model)
    for path, layer in layers.items():
        model.set_submodule(path, _dense_experts(layer, plain.get_submodule(path)))
    if layers:
        store_experts_one_by_one(model)


def _dense_experts(layer: ExpertLayer, experts: nn.Module) -> nn.Module:
    """The module of the class of `experts` with the matrices of `layer`."""
    for name, stack in layer.stacks().items():
        empty = experts.get_parameter(name)
        if isinstance(stack, DenseExpertStack):
            weight = stack.weight
        else:
            first = dense_weight(stack.slice(0))
            weight = nn.Parameter(torch.empty(empty.shape, dtype=first.dtype, device=first.device))
            target = weight.transpose(1, 2) if vars(experts)["is_transposed"] else weight
            for index in range(stack.experts):
                target[index] = dense_weight(stack.slice(index))
        experts.register_parameter(name, weight)
        if stack.bias is not None:
            experts.register_parameter(f"{name}_bias", stack.bias)
    stacks = layer.stacks()
    for name, child in layer.named_children():
        if name not in stacks:
            experts.add_module(name, child)
    for name, parameter in layer.named_parameters(recurse=False):
        experts.register_parameter(name, parameter)
    for name, buffer in layer.named_buffers(recurse=False):
        experts.register_buffer(name, buffer, persistent=name not in layer._non_persistent_buffers_set)
    return experts.train(layer.training)
