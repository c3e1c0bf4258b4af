"""Architectures whose layers are of several kinds, as tiny models of which the kinds are drawn at random.

Each says in its own way which layer is of which kind: by a list, by numbers, by how many of the first, by every
so-manieth. Their other sizes are the same for all.
"""

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from tests.tiny_models import HEADS, INNER, SMALL, VOCABULARY, WIDTH

LAYERS = 5
SLIDES = ("sliding_attention", "full_attention")
RECURS = ("linear_attention", "full_attention")
SIZES: dict[str, Any] = {
    **SMALL,
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": INNER,
    "intermediate_size_mlp": INNER,
    "shared_intermediate_size": INNER,
    "max_position_embeddings": 40,
    "sliding_window": 4,
    "attention_window_size": 4,
    "attention_chunk_size": 4,
    "embedding_size": WIDTH,
    # Experts.
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    # Latent attention.
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 4,
    # What recurs.
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_dt_rank": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 1,
    "ssm_state_size": 8,
    "chunk_size": 8,
    "state_size": 8,
    "time_step_rank": 4,
    "lru_width": WIDTH,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "block_size": 8,
}
Draw = Callable[[Random], dict[str, Any]]


def each(random: Random, *kinds: Any) -> list[Any]:
    """One of `kinds` for each layer."""
    return [random.choice(kinds) for _ in range(LAYERS)]


def some(random: Random, least: int = 0) -> list[int]:
    """The numbers of some layers."""
    return sorted(random.sample(range(LAYERS), random.randint(least, LAYERS)))


def sliding(random: Random) -> dict[str, Any]:
    return {"layer_types": each(random, *SLIDES), "use_sliding_window": True}


def latent(random: Random) -> dict[str, Any]:
    return {"num_key_value_heads": HEADS, "head_dim": SIZES["qk_rope_head_dim"]}


def first(name: str) -> Draw:
    return lambda random: {name: random.randint(0, LAYERS)}


def sparse(random: Random) -> dict[str, Any]:
    return {"decoder_sparse_step": random.randint(1, 3), "mlp_only_layers": some(random), "norm_topk_prob": True}


def interval(random: Random) -> dict[str, Any]:
    start = random.randint(0, LAYERS - 1)
    numbers = {"start_index": start, "end_index": random.randint(start, LAYERS - 1), "interval": random.randint(1, 2)}
    return {"moe_k": 2, **{f"moe_layer_{name}": number for name, number in numbers.items()}}


def periods(random: Random) -> dict[str, Any]:
    drawn = {}
    for name in ("attn_layer", "expert_layer"):
        drawn[f"{name}_period"] = random.randint(1, 3)
        drawn[f"{name}_offset"] = random.randrange(drawn[f"{name}_period"])
    return drawn


def llama4(random: Random) -> dict[str, Any]:
    kinds = each(random, "chunked_attention", "full_attention")
    return {"no_rope_layers": each(random, 0, 1), "moe_layers": some(random), "layer_types": kinds}


def in_three_ways(random: Random) -> dict[str, Any]:
    return {"mlp_layer_types": each(random, "dense", "sparse"), "layer_types": each(random, *SLIDES)}


DRAWN: dict[str, Draw] = {
    "qwen2": sliding,
    "qwen3": sliding,
    "gemma2": sliding,
    "gemma3_text": sliding,
    "cohere2": sliding,
    "olmo3": sliding,
    "gpt_oss": sliding,
    "modernbert": lambda random: {**sliding(random), "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    "smollm3": lambda random: {"no_rope_layers": each(random, 0, 1), **sliding(random)},
    "llama4_text": llama4,
    "granite_swa": lambda random: {**sliding(random), "layer_rope_theta": each(random, 100.0, 10000.0)},
    "deepseek_v2": lambda random: {**first("first_k_dense_replace")(random), **latent(random)},
    "deepseek_v3": lambda random: {**first("first_k_dense_replace")(random), **latent(random)},
    "glm4_moe": first("first_k_dense_replace"),
    "dots1": lambda random: {**first("first_k_dense_replace")(random), **sliding(random)},
    "afmoe": lambda random: {**first("num_dense_layers")(random), "layer_types": each(random, *SLIDES)},
    "ernie4_5_moe": interval,
    "qwen2_moe": lambda random: {**sparse(random), **sliding(random)},
    "qwen3_moe": sparse,
    "qwen3_next": lambda random: {**sparse(random), "layer_types": each(random, *RECURS)},
    "mimo_v2_flash": in_three_ways,
    "laguna": lambda random: {**in_three_ways(random), "num_attention_heads_per_layer": each(random, 2, 4)},
    "hy_v4": lambda random: {"indexer_types": ["full", *each(random, "full", "shared")[1:]]},
    "olmoe": lambda random: {},
    "granitemoe": lambda random: {},
    "mixtral": lambda random: {},
    "granitemoehybrid": lambda random: {"layer_types": each(random, *RECURS)},
    "jamba": periods,
    "bamba": lambda random: {"attn_layer_indices": some(random, least=1)},
    "lfm2": lambda random: {"layer_types": each(random, "conv", "full_attention")},
    "recurrent_gemma": lambda random: {"block_types": each(random, "recurrent", "attention")[: random.randint(2, 5)]},
    "minimax": lambda random: {"layer_types": each(random, *RECURS)},
    "falcon_mamba": lambda random: {},
    "mamba": lambda random: {},
    # Whose layers depend on how many there are, or on their numbers alone.
    "minicpm3": lambda random: {"scale_depth": random.uniform(1, 2), **latent(random)},
    "diffllama": lambda random: {},
    "gpt_neox_japanese": lambda random: {},
    "esm": lambda random: {},
    "gpt2": lambda random: {"scale_attn_by_inverse_layer_idx": random.random() < 0.5},
    "gpt_neo": lambda random: {"attention_types": [[each(random, "global", "local"), 1]], "window_size": 3},
    "longformer": lambda random: {"attention_window": each(random, 4, 8), "max_position_embeddings": 42},
}


def drawn_model(model_type: str, random: Random) -> PreTrainedModel:
    """A tiny model of `model_type`, of layers that are drawn."""
    kind = type(AutoConfig.for_model(model_type))
    names = {field.name for field in dataclasses.fields(kind)} | kind.attribute_map.keys()
    sizes = {name: size for name, size in SIZES.items() if name in names}
    config = kind(**{**sizes, **DRAWN[model_type](random)})
    for mapping in (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_MASKED_LM_MAPPING):
        if kind in mapping:
            made = mapping[kind]
            return (made[0] if isinstance(made, tuple) else made)(config)
    raise LookupError(model_type)
