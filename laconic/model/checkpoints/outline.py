"""The model that a configuration describes, without numbers: to see whether there is one, and what it would be."""

import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError, must_be, reason_of, shown
from laconic.model.anatomy import entry_of
from laconic.model.stock import MODEL_ERRORS
from laconic.model.task import auto_class_for
from laconic.model.text import text_config
from laconic.model.tokens import declared


def outline_of(config: PreTrainedConfig, source: str) -> PreTrainedModel:
    """The model that `config` describes, on the meta device.

    Raises:
        UserError: its class cannot be built with it, or is not supported.
    """
    kind: Any = auto_class_for(config, config.architectures or ())
    check_depths(config, f"In the config.json of '{source}', ")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Told below, in a sentence.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            outline: PreTrainedModel = kind.from_config(config, trust_remote_code=False)
    except MODEL_ERRORS as error:
        reason = _pad_beyond(config) or _unknown_value(config, error) or reason_of(error)
        raise UserError(
            f"The config.json of '{source}' describes no model that can be built: {reason}; take the one that was "
            "saved with the weights."
        ) from error
    _check_sizes(outline, source)
    return outline


def check_depths(config: PreTrainedConfig, where: str) -> None:
    """A class makes a model without blocks of a number of layers below 1, and says nothing; `where` opens a sentence.

    Raises:
        UserError: there is such a number.
    """
    entry = entry_of(config.model_type)
    for stack in () if entry is None else entry.stacks:
        layers = None if stack.depth is None else getattr(config, stack.depth.count, None)
        if stack.depth is not None and isinstance(layers, int) and layers < 1:
            name = config.attribute_map.get(stack.depth.count, stack.depth.count)
            raise must_be(f"{where}{name}", "at least 1", layers)


def _check_sizes(model: PreTrainedModel, source: str) -> None:
    """torch makes a layer of no inputs or no outputs, and says nothing."""
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Embedding, nn.Linear, Conv1D)):
            continue
        shape = tuple(module.get_parameter("weight").shape)
        # Of an embedding without rows, as of token types, a class may make no use.
        if 0 in (shape[-1:] if isinstance(module, nn.Embedding) else shape):
            raise UserError(
                f"The config.json of '{source}' describes no model that can be built: the weight of '{name}' would "
                f"have the shape {shape}; take the one that was saved with the weights."
            )


def _unknown_value(config: PreTrainedConfig, error: Exception) -> str:
    """What has the value that a class missed in a table of its own, as the name of an activation."""
    wanted = error.args[0] if isinstance(error, LookupError) and error.args else None
    said = config.to_dict()
    parts = {"": said} | {f"{name}.": value for name, value in said.items() if isinstance(value, dict)}
    found = [f"{prefix}{name}" for prefix, part in parts.items() for name, value in part.items() if value == wanted]
    return f"{found[0]} is {shown(wanted)}, which its class does not know" if isinstance(wanted, str) and found else ""


def _pad_beyond(config: PreTrainedConfig) -> str:
    """What is wrong with its pad token, if anything is: torch does not say of which number it speaks."""
    known: object = getattr(text_config(config), "vocab_size", None)
    beyond = [token for token in declared(config, "pad_token_id") if isinstance(known, int) and token >= known >= 0]
    return f"pad_token_id is {beyond[0]}, and vocab_size {known} ends before that" if beyond else ""
