"""Tiny causal models with heads and widths that vLLM's kernels compute, compressed in every way that it reads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from laconic.compress.matrices import Compress
from laconic.methods import Int8, Rtn
from laconic.model import LanguageModel
from laconic.store.folder import to_dtype
from tests.tokens import letters

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 640, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
}
EXPERTS = 4
CHANNELS = 256
"""Channels of an expert, where they have a number of their own."""
_FEW: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": 2}
_OWN: dict[str, Any] = {**_FEW, "moe_intermediate_size": CHANNELS}
MIXTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=EXPERTS, num_experts_per_tok=2)),
    "qwen2-moe": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **_OWN, shared_expert_intermediate_size=CHANNELS)),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **_OWN)),
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**SIZES, **_FEW)),
}
SCHEMES = {
    "4 bits, groups of 32": Rtn(bits=4, group_size=32),
    "4 bits, groups of 64, symmetric": Rtn(bits=4, group_size=64, symmetric=True),
    "4 bits, groups of 128": Rtn(bits=4, group_size=128),
    "4 bits, rows": Rtn(bits=4, group_size="channel"),
    "4 bits, rows, symmetric": Rtn(bits=4, group_size="channel", symmetric=True),
    "8 bits, groups of 64": Rtn(bits=8, group_size=64),
    "8 bits, one scale, symmetric": Rtn(bits=8, group_size="tensor", symmetric=True),
    "int8": Int8(),
}


def compressed(
    model: str, *methods: tuple[Any, str], dtype: torch.dtype = torch.float32, spread: float = 0.2
) -> LanguageModel:
    """A random model, compressed by each method at its targets.

    Args:
        model: a key of `MODELS` or `MIXTURES`.
        methods: pairs of a method and the layers that it compresses.
        dtype: the dtype of the model.
        spread: the standard deviation of its weights, large enough that the tokens that it writes vary.
    """
    torch.manual_seed(0)
    network = (MODELS | MIXTURES)[model]().eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=spread)
    # As a checkpoint is loaded: rotary frequencies stay in float32.
    lm = replace(LanguageModel.of(to_dtype(network, dtype)), tokenizer=letters("start"), dtype=dtype)
    for method, targets in methods:
        Compress(method=method, targets=(targets,)).apply(lm, None)
    return lm
