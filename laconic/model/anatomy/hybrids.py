"""Entries of hybrids: some blocks have an attention, and the others a linear attention or a state space.

The linears of a linear attention or a state space are compressed like all others. Its heads are part of its recurrence,
and cannot be removed; those of the attentions can.
"""

from dataclasses import replace

from laconic.model.anatomy.heads import Heads
from laconic.model.anatomy.llama import LLAMA
from laconic.model.anatomy.parts import Anatomy, Experts, FeedForward, OtherLinear, Stack, one_stack, separate_attention
from laconic.model.site import Group

_LLAMA = LLAMA.stacks[0]
_SHARED_EXPERT = FeedForward(
    ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    "mlp.shared_expert.down_proj",
    "shared_expert_intermediate_size",
    width="mlp.shared_expert.intermediate_size",
)


def _others(group: Group, *inputs: tuple[str, ...]) -> tuple[OtherLinear, ...]:
    """Linears with an unknown function; those of one tuple read the same input."""
    return tuple(
        OtherLinear(path=path, group=group, same_as=paths[0] if number else None)
        for paths in inputs
        for number, path in enumerate(paths)
    )


def _qwen(model_types: str, *inner: str) -> Anatomy:
    """Qwen with linear attentions whose input projections are called `inner`."""
    projections = tuple(f"linear_attn.{name}" for name in inner)
    stack = replace(
        _LLAMA,
        feed_forward=(*_LLAMA.feed_forward, _SHARED_EXPERT),
        experts=(Experts(module="mlp.experts", router="mlp.gate"),),
        other_linears=(
            *_others(Group.ATTENTION, projections, ("linear_attn.out_proj",)),
            *_others(Group.FFN, ("mlp.shared_expert_gate",)),
        ),
    )
    return one_stack(model_types, "embed_tokens", stack)


QWEN3_NEXT = _qwen("qwen3_next", "in_proj_qkvz", "in_proj_ba")
QWEN3_5 = _qwen("qwen3_5_text qwen3_5_moe_text", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")

JAMBA = one_stack(
    "jamba",
    "embed_tokens",
    Stack(
        blocks="layers",
        attention=separate_attention(
            "self_attn",
            "q_proj k_proj v_proj",
            "self_attn.o_proj",
            norm="input_layernorm",
            # The class computes the size of a head from the width and the number of heads.
            heads=Heads(
                size="head_dim",
                can_shrink=False,
                size_obstacle="its class computes the size from the width and the number of heads",
            ),
        ),
        feed_forward=(
            FeedForward(
                ("feed_forward.gate_proj", "feed_forward.up_proj"),
                "feed_forward.down_proj",
                # The key of the configuration is that of the experts too, whose width stays.
                None,
                norm=("pre_ff_layernorm",),
            ),
        ),
        experts=(Experts(module="feed_forward.experts", router="feed_forward.router"),),
        other_linears=(
            *_others(Group.FFN, ("mamba.in_proj",), ("mamba.x_proj",), ("mamba.dt_proj",), ("mamba.out_proj",)),
            *_others(Group.FFN, ("feed_forward.router",)),
        ),
    ),
)
