"""The sizes of attention heads that vLLM computes on a CPU. With others it fails only at the first request."""

from collections.abc import Mapping
from typing import Any

CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The sizes that vLLM 0.32 has."""


def cpu_heads_reason(config: Mapping[str, Any]) -> str | None:
    """The reason why vLLM cannot run the attention of a model on a CPU, with the nearest size of heads that works.

    Args:
        config: the configuration of the model, as in its config.json.

    Returns:
        The reason as a clause; None if vLLM can, or if the configuration does not say the size.

    Example:
        >>> cpu_heads_reason({"hidden_size": 160, "num_attention_heads": 8})
        'vLLM on a CPU has no attention with heads of 20 channels (the nearest size that it has is 32)'
        >>> cpu_heads_reason({"hidden_size": 896, "num_attention_heads": 14}) is None
        True
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    width, heads, size = (text.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if not isinstance(size, int):
        if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
            return None
        size = width // heads
    if size in CPU_HEADS:
        return None
    nearest = min(CPU_HEADS, key=lambda known: abs(known - size))
    return f"vLLM on a CPU has no attention with heads of {size} channels (the nearest size that it has is {nearest})"
