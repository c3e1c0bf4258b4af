"""Quantized experts in vLLM on a CPU: it has them only for processors with AMX, and otherwise fails when it loads."""

import re
from collections.abc import Mapping
from typing import Any

from laconic.formats.packed_stack import Int8Stack, QuantizedStack
from laconic.model.mixture import COUNT_KEYS
from laconic.system import short_numbers

EXPERTS = re.compile(r"\bexperts\b")
"""Matches the names of experts that a router chooses, but not `shared_experts`, which every token reads."""
AMX = "amx_int8"
KINDS = (QuantizedStack.kind, Int8Stack.kind)
"""The kinds of experts that are exported as codes."""


def processor_reason() -> str | None:
    """The reason why vLLM 0.32 cannot run quantized experts on this processor; None if it can."""
    if AMX in short_numbers():
        return None
    return "vLLM on a CPU computes quantized experts only with AMX instructions, which this processor does not have"


def cpu_experts_reason(config: Mapping[str, Any]) -> str | None:
    """The reason why vLLM cannot run the experts of a model on this processor.

    Args:
        config: the configuration of the model, as in its config.json.

    Returns:
        The reason as a clause; None if vLLM can, or if the model has no quantized experts.

    Example:
        >>> cpu_experts_reason({"num_local_experts": 8}) is None
        True
    """
    quantization = config.get("quantization_config")
    return processor_reason() if isinstance(quantization, Mapping) and _has_experts(config, quantization) else None


def _has_experts(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` quantizes experts."""
    structure = quantization.get("structure")
    if isinstance(structure, Mapping):
        return any(isinstance(entry, Mapping) and entry.get("kind") in KINDS for entry in structure.values())
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    ignored = quantization.get("ignore") or ()
    return (
        quantization.get("quant_method") == "compressed-tensors"
        and any(isinstance(text.get(key), int) for key in COUNT_KEYS)
        and not any(EXPERTS.search(str(name)) for name in ignored)
    )
