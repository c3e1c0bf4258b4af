"""The metadata of a GGUF file: sizes of the model, norms, windows and experts."""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from laconic.export.gguf.architectures import Architecture
from laconic.export.gguf.encoders import first_position
from laconic.export.gguf.rope import rope_metadata
from laconic.export.gguf.shape import Shape

Value = int | float | bool | str | Sequence[int]
UNBOUNDED = 512
"""The context of a model whose positions have no end, as llama.cpp's converter writes it."""
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")


def model_metadata(config: PreTrainedConfig, architecture: Architecture, shape: Shape) -> dict[str, Value]:
    """The metadata of a model, by key without the architecture.

    Args:
        config: its configuration, which `check_config` has accepted.
        architecture: the architecture to write.
        shape: the widths of its blocks.
    """
    epsilon = next(value for key in _EPSILONS if (value := getattr(config, key, None)) is not None)
    norm = "layer_norm_rms_epsilon" if architecture.rms_norm else "layer_norm_epsilon"
    metadata: dict[str, Value] = {
        "context_length": context_length(config, architecture),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": _one_or_each(shape.channels),
        "attention.head_count": _one_or_each(shape.heads),
        "attention.head_count_kv": _one_or_each(shape.groups),
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        f"attention.{norm}": epsilon,
        "vocab_size": config.vocab_size,
        **rope_metadata(config, shape),
        **_window_metadata(config, architecture),
        **_expert_metadata(config, shape),
    }
    for key, name in architecture.values.items():
        if (value := getattr(config, name)) is not None:
            metadata[key] = value
    return metadata


def context_length(config: PreTrainedConfig, architecture: Architecture) -> int:
    """The longest context: it ends at the sliding window if the graph of llama.cpp has none."""
    window = None if architecture.windows else sliding_window(config)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", UNBOUNDED)
    longest -= first_position(config, architecture)
    return min(longest, window or longest)


def sliding_window(config: PreTrainedConfig) -> int | None:
    """The window of attention; None if every block sees all tokens."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not getattr(config, "use_sliding_window", True) or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return window


def window_period(config: PreTrainedConfig) -> int | None:
    """p such that every p-th block sees all tokens and the others a window; None if no p is right."""
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    period = slides.index(False) + 1 if False in slides else len(slides) + 1
    return period if slides == [index % period < period - 1 for index in range(len(slides))] else None


def _window_metadata(config: PreTrainedConfig, architecture: Architecture) -> dict[str, Value]:
    window = sliding_window(config) if architecture.windows else None
    if window is None:
        return {}
    period = window_period(config)
    assert period is not None, "checked before"
    return {"attention.sliding_window": window, "attention.sliding_window_pattern": period}


def _expert_metadata(config: PreTrainedConfig, shape: Shape) -> dict[str, Value]:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not experts:
        return {}
    metadata: dict[str, Value] = {"expert_count": experts, "expert_feed_forward_length": _one_or_each(shape.channels)}
    if (shared := getattr(config, "shared_expert_intermediate_size", None)) is not None:
        metadata["expert_shared_feed_forward_length"] = shared
    return metadata


def _one_or_each(counts: Sequence[int]) -> int | Sequence[int]:
    """The number of every block, or the list of all if they differ."""
    return counts[0] if len(set(counts)) == 1 else list(counts)
