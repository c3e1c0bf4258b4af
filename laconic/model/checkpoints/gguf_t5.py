"""T5 in a GGUF file: what transformers 5.23 does not take from it is written into its configuration.

transformers gives every T5 of a file a gate and ReLU, a decoder as deep as the encoder, and the scale of its outputs if
the head is tied. llama.cpp has GELU with a gate and ReLU without one, and never scales the outputs.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedConfig

HEAD = "output.weight"
ARCHITECTURES = ("t5", "t5encoder")


def complete_t5(config: PreTrainedConfig, metadata: Mapping[str, Any], names: Collection[str]) -> None:
    """Write what llama.cpp computes into the configuration of a T5, in place; other configurations stay as they are.

    Args:
        config: the configuration that transformers read from the file.
        metadata: the metadata of the file.
        names: the names of its tensors.
    """
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        return
    is_gated = any("ffn_gate" in name for name in names)
    config.feed_forward_proj = "gated-gelu" if is_gated else "relu"
    config.is_gated_act, config.dense_act_fn = is_gated, "gelu_new" if is_gated else "relu"
    config.num_decoder_layers = metadata.get(f"{architecture}.decoder_block_count", config.num_layers)
    config.scale_decoder_outputs = False
