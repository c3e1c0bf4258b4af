"""Tiny random mixtures of experts, which transformers stores in one tensor of three dimensions for each layer."""

from collections.abc import Callable
from typing import Any

import transformers as hf
from transformers import PreTrainedModel

from tests.architectures import BLOCKS, DECODER, HEADS, INNER, SMALL, VOCABULARY, WIDTH

EXPERTS = 4
FEW: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": 2}
SMALLER = 24
"""Channels of an expert, where they have a number of their own."""
EVERY: dict[str, Any] = {**DECODER, **SMALL}
LATENT: dict[str, Any] = {
    **EVERY, "num_key_value_heads": HEADS, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": SMALLER, "first_k_dense_replace": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_shared_experts": 1,
}  # fmt: skip
OSS: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "rope_parameters": None,
}

# The model, the number of parameters of its routers, and whether its feed-forwards have linears too.
MIXTURES: dict[str, tuple[Callable[[], PreTrainedModel], int, bool]] = {
    "qwen2-moe": (
        lambda: hf.Qwen2MoeForCausalLM(
            hf.Qwen2MoeConfig(**EVERY, **FEW, moe_intermediate_size=SMALLER, shared_expert_intermediate_size=SMALLER)
        ),
        BLOCKS * EXPERTS * WIDTH,
        True,
    ),
    "qwen3-moe": (
        lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**EVERY, **FEW, moe_intermediate_size=SMALLER)),
        BLOCKS * EXPERTS * WIDTH,
        False,
    ),
    "mixtral": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**EVERY, num_local_experts=EXPERTS, num_experts_per_tok=2)),
        BLOCKS * EXPERTS * WIDTH,
        False,
    ),
    "olmoe": (
        lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(**EVERY, **FEW)),
        BLOCKS * EXPERTS * WIDTH,
        False,
    ),
    "deepseek-v3": (
        lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**LATENT)),
        # The first block has a dense feed-forward.
        (BLOCKS - 1) * EXPERTS * WIDTH,
        True,
    ),
    "gpt-oss": (
        lambda: hf.GptOssForCausalLM(hf.GptOssConfig(**EVERY, **OSS)),
        BLOCKS * EXPERTS * WIDTH,
        False,
    ),
}


def jetmoe() -> PreTrainedModel:
    """A mixture whose experts are computed by code of its own, so that they cannot be compressed."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "intermediate_size": INNER}
    heads = {"num_key_value_heads": 2, "kv_channels": WIDTH // HEADS}
    return hf.JetMoeForCausalLM(
        hf.JetMoeConfig(**sizes, **heads, **SMALL, num_local_experts=EXPERTS, num_experts_per_tok=2)
    )


IN_JETMOE = BLOCKS * EXPERTS * (3 * WIDTH * INNER + 2 * WIDTH * WIDTH // 2)
"""The parameters of its experts, which are in its feed-forwards and in its attention."""
OUTSIDE_IN_JETMOE = BLOCKS * (WIDTH * WIDTH + 2 * EXPERTS * WIDTH)
"""The parameters of its linears: keys and values, and the routers of both."""
