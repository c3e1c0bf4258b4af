"""The model that a configuration describes, without numbers: to see whether there is one, and what it would be."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.model.task import auto_class_for

UNBUILDABLE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What the classes of transformers raise on numbers and names that they cannot be built with."""


def outline_of(config: PreTrainedConfig, source: str) -> PreTrainedModel:
    """The model that `config` describes, on the meta device.

    Raises:
        UserError: its class cannot be built with it, or is not supported.
    """
    kind: Any = auto_class_for(config, config.architectures or ())
    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=False)
    except UNBUILDABLE as error:
        said = reason_of(error)
        named = f"{type(error).__name__}: {said}" if isinstance(error, LookupError) else said
        raise UserError(
            f"The config.json of '{source}' describes no model that can be built: {named}; "
            "take the one that was saved with the weights."
        ) from error
