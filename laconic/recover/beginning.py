"""What a student begins as: a model of random weights, some of them then those of the model that it stands for."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.model import LanguageModel, Task
from laconic.model.layers import layers_of
from laconic.model.task import AUTO_CLASSES


def tell_apart(config: PreTrainedConfig, classes: int) -> None:
    """Have a head of `config` tell so many classes apart, or give a score where it is 1; changed in place."""
    config.id2label = {number: f"LABEL_{number}" for number in range(classes)}
    config.label2id = {name: number for number, name in config.id2label.items()}
    config.problem_type = "regression" if classes == 1 else None


def classifier_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that classifies texts by the architecture of `config`.

    Raises:
        UserError: there is none.
    """
    _, mapping = AUTO_CLASSES[Task.CLASSIFICATION]
    if type(config) not in mapping:
        raise UserError(f"Models of the type '{config.model_type}' have no class that classifies texts.")
    kind = mapping[type(config)]
    return kind[0] if isinstance(kind, tuple) else kind


def random_model(config: PreTrainedConfig, kind: Any, device: torch.device, seed: int) -> PreTrainedModel:
    """In fp32, whatever the configuration says: what trains is rounded where it is stored.

    Raises:
        UserError: the configuration contradicts itself.
    """
    # Numbers are drawn on the CPU, so that they are the same on every device.
    drawn_on = device if device.type == "meta" else torch.device("cpu")
    with torch.random.fork_rng(), drawn_on:
        torch.manual_seed(seed)
        try:
            model = kind.from_config(config) if not issubclass(kind, PreTrainedModel) else kind(config)
        except ValueError as error:
            raise UserError(f"There is no model of that configuration: {reason_of(error)}") from error
    torch.nn.Module.to(model, device, torch.float32)
    return model


@torch.no_grad()
def copy_numbers(source: LanguageModel, target: LanguageModel, *, blocks: bool, outside: bool, head: bool) -> None:
    """Give `target` the numbers of `source` within the blocks, and outside of them with the head or without.

    Where shapes differ, and where one has what the other has not, those of `target` stay.
    """
    inside = tuple(f"{layers.list}." for layers in layers_of(target))
    ours, theirs = _prefix(target.model), _prefix(source.model)
    numbers: Mapping[str, torch.Tensor] = source.model.state_dict()
    for name, tensor in target.model.state_dict().items():
        if not (blocks if name.startswith(inside) else outside and (head or name.startswith(ours))):
            continue
        # The same encoder is at another place under another head.
        there = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        if there in numbers and numbers[there].shape == tensor.shape:
            tensor.copy_(numbers[there])


def _prefix(model: PreTrainedModel) -> str:
    """What the names of the encoder's tensors begin with; empty where it is the model itself."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."
