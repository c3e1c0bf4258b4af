"""Entries of the mixtures of experts, which have attentions like LLaMA's unless noted.

The norm before the experts is read by the router too, so that no scale can be divided from it into the experts.
"""

from dataclasses import replace

from laconic.model.anatomy.heads import Obstacle
from laconic.model.anatomy.llama import ROTARY_ATTENTION, ROTARY_HEADS
from laconic.model.anatomy.parts import Experts, FeedForward, OtherLinear, Stack, one_stack
from laconic.model.site import Group

_EXPERTS = Experts(module="mlp.experts", router="mlp.gate")


def _gated(module: str, config_width: str | None, norm: tuple[str, ...] = ()) -> FeedForward:
    return FeedForward(
        (f"{module}.gate_proj", f"{module}.up_proj"),
        f"{module}.down_proj",
        config_width,
        width=f"{module}.intermediate_size",
        norm=norm,
    )


# In the blocks without experts.
_DENSE = _gated("mlp", "intermediate_size", norm=("post_attention_layernorm",))
_STACK = Stack(blocks="layers", attention=ROTARY_ATTENTION, experts=(_EXPERTS,))

MIXTRAL = one_stack("mixtral", "embed_tokens", _STACK)

QWEN_MOE = one_stack(
    "qwen2_moe qwen3_moe",
    "embed_tokens",
    replace(
        _STACK,
        # The second is every token's share of Qwen2-MoE's experts.
        feed_forward=(_DENSE, _gated("mlp.shared_expert", "shared_expert_intermediate_size")),
        other_linears=(OtherLinear(path="mlp.shared_expert_gate", group=Group.FFN),),
    ),
)

# The norms of queries and keys cover all heads, so every head depends on every other.
OLMOE = one_stack(
    "olmoe",
    "embed_tokens",
    replace(
        _STACK,
        attention=replace(
            ROTARY_ATTENTION,
            heads=replace(
                ROTARY_HEADS,
                clip="config.clip_qkv",
                obstacles=(Obstacle(reason="a norm covers the queries of all its heads"),),
            ),
        ),
    ),
)

GRANITE_MOE = one_stack(
    "granitemoe",
    "embed_tokens",
    replace(_STACK, experts=(Experts(module="block_sparse_moe.experts", router="block_sparse_moe.router"),)),
)

# Each head has a sink, a number in the softmax of its scores.
GPT_OSS = one_stack(
    "gpt_oss",
    "embed_tokens",
    replace(
        _STACK,
        attention=replace(
            ROTARY_ATTENTION,
            heads=replace(ROTARY_HEADS, obstacles=(Obstacle(reason="each of them has an attention sink"),)),
        ),
        experts=(Experts(module="mlp.experts", router="mlp.router"),),
    ),
)

# Multi-head latent attention: queries, keys and values are computed from narrow latent vectors, each with a norm. The
# latent vector of the queries may be missing.
DEEPSEEK_V3 = one_stack(
    "deepseek_v3",
    "embed_tokens",
    replace(
        _STACK,
        attention=None,
        feed_forward=(_DENSE, _gated("mlp.shared_experts", None)),
        other_linears=tuple(
            OtherLinear(path=f"self_attn.{path}", group=Group.ATTENTION, same_as=same_as, norm=norm)
            for path, same_as, norm in (
                ("q_a_proj", None, "input_layernorm"),
                ("q_proj", "self_attn.q_a_proj", None),
                ("kv_a_proj_with_mqa", "self_attn.q_a_proj", None),
                ("q_b_proj", None, "self_attn.q_a_layernorm"),
                ("kv_b_proj", None, "self_attn.kv_a_layernorm"),
                ("o_proj", None, None),
            )
        ),
    ),
)
