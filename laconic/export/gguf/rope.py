"""Rotary positions in a GGUF file: their base, their scaling, and the tensors by which frequencies are divided."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from laconic.errors import UserError
from laconic.export.gguf.architectures import Architecture
from laconic.export.gguf.shape import Shape

Number = int | float | bool | str
FACTORS = "rope_freqs.weight"
"""The tensor by which llama.cpp divides the frequencies of rotary positions."""
LONG_FACTORS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
"""The tensors for contexts that are longer than the original one, and for others, by the keys of the configuration."""
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
"""The parameters of yarn that llama.cpp assumes in nearly all architectures."""
YARN_GROWTH = 0.1
"""By yarn, attention grows with the logarithm of the factor, times this."""


def rope_parameters(config: PreTrainedConfig, kind: str = "full_attention") -> Mapping[str, Any]:
    """The rotary parameters of one kind of attention; empty for other positions."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get(kind, parameters)


def rope_tensors(config: PreTrainedConfig) -> dict[str, Float[Tensor, " frequencies"]]:
    """The factors of the rotary frequencies, by the names of their tensors; empty for most scalings."""
    rope = rope_parameters(config)
    if rope.get("rope_type") == "longrope":
        return {name: torch.tensor(rope[key], dtype=torch.float32) for key, name in LONG_FACTORS.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    count = 2 * len(scaled)
    return {FACTORS: rope["rope_theta"] ** (-torch.arange(0, count, 2, dtype=torch.float32) / count) / scaled}


def check_rope(config: PreTrainedConfig, architecture: Architecture) -> None:
    """Check that llama.cpp scales rotary positions as the model does.

    Args:
        config: the configuration.
        architecture: the architecture to write.

    Raises:
        UserError: the scaling is of another kind, or has other parameters.
    """
    for kind in ("full_attention", "sliding_attention"):
        rope = rope_parameters(config, kind)
        scaling = rope.get("rope_type", "default")
        if scaling not in architecture.rotary:
            raise UserError(
                f"A GGUF file of {architecture.name} takes the rotary scalings {', '.join(architecture.rotary)}, and "
                f"the model has '{scaling}'; export it to onnx or openvino."
            )
        for name, value in YARN.items() if scaling == "yarn" else ():
            if rope.get(name) not in (value, None):
                raise UserError(
                    f"llama.cpp computes yarn with {name} {value}, and the model has {rope[name]}; export it to onnx "
                    "or openvino."
                )


def rope_metadata(config: PreTrainedConfig, shape: Shape) -> dict[str, Number]:
    """The metadata of rotary positions, by key without the architecture; empty for other positions.

    Args:
        config: the configuration, which `check_rope` has accepted.
        shape: the widths of the blocks.
    """
    rope = rope_parameters(config)
    if not rope:
        return {}
    metadata: dict[str, Number] = {
        "rope.dimension_count": int(shape.head_size * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
        **_scaling(config, rope),
    }
    if "full_attention" in config.rope_parameters:
        metadata["rope.freq_base_swa"] = float(rope_parameters(config, "sliding_attention")["rope_theta"])
    return metadata


def _scaling(config: PreTrainedConfig, rope: Mapping[str, Any]) -> dict[str, Number]:
    kind = rope.get("rope_type")
    if kind == "linear":
        return {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind not in ("yarn", "longrope"):
        return {}
    _, attention = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    context = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    scaling: dict[str, Number] = {"rope.scaling.type": kind, "rope.scaling.original_context_length": int(context)}
    if kind == "yarn":
        factor = float(rope["factor"])
        scaling["rope.scaling.factor"] = factor
        # llama.cpp multiplies by this itself.
        attention /= 1 + YARN_GROWTH * math.log(factor)
    return {**scaling, "rope.scaling.attn_factor": float(attention)}
