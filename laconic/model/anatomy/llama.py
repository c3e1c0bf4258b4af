"""Entries of LLaMA and of the decoders with its names of modules."""

from dataclasses import replace

from laconic.model.anatomy.heads import ROTATED, Heads, Obstacle
from laconic.model.anatomy.parts import Attention, Depth, FeedForward, Stack, one_stack, separate_attention

_QKV = "q_proj k_proj v_proj"

# Rotary positions rotate each head on its own. Heads that share keys and values are removed together.
ROTARY_HEADS = Heads(
    size="head_dim",
    group_size="num_key_value_groups",
    can_shrink=False,
    size_obstacle=ROTATED,
    config_size="head_dim",
    config_count="num_attention_heads",
    config_kv_count="num_key_value_heads",
)

_GATED = FeedForward(
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
    "intermediate_size",
    width="mlp.intermediate_size",
    # Gemma 2 and 3 have both, and the second one after the attention.
    norm=("pre_feedforward_layernorm", "post_attention_layernorm"),
)
ROTARY_ATTENTION = separate_attention("self_attn", _QKV, "self_attn.o_proj", norm="input_layernorm", heads=ROTARY_HEADS)
_STACK = Stack(
    blocks="layers",
    attention=ROTARY_ATTENTION,
    feed_forward=(_GATED,),
    # Gemma 2 and 3; the second is missing elsewhere.
    depth=Depth(output_norms=("post_attention_layernorm", "post_feedforward_layernorm")),
)

LLAMA = one_stack(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text granite smollm3 qwen3_vl_text", "embed_tokens", _STACK
)

# The class computes the size of a head from the width and the number of heads.
QWEN2_VL = one_stack(
    "qwen2_vl_text qwen2_5_vl_text",
    "embed_tokens",
    replace(
        _STACK,
        attention=replace(
            ROTARY_ATTENTION,
            heads=Heads(
                size="head_dim",
                count="num_heads",
                kv_count="num_key_value_heads",
                group_size="num_key_value_groups",
                can_shrink=False,
                size_obstacle=ROTATED,
            ),
        ),
    ),
)

PHI = one_stack(
    "phi",
    "embed_tokens",
    Stack(
        blocks="layers",
        attention=separate_attention("self_attn", _QKV, "self_attn.dense", norm="input_layernorm", heads=ROTARY_HEADS),
        feed_forward=(FeedForward(("mlp.fc1",), "mlp.fc2", "intermediate_size", activation="mlp.activation_fn"),),
        parallel=True,
    ),
)

STARCODER2 = one_stack(
    "starcoder2",
    "embed_tokens",
    Stack(
        blocks="layers",
        attention=ROTARY_ATTENTION,
        feed_forward=(
            FeedForward(
                ("mlp.c_fc",),
                "mlp.c_proj",
                "intermediate_size",
                norm=("post_attention_layernorm",),
                activation="mlp.act",
            ),
        ),
    ),
)

# Its norms come after the sub-blocks. Those of queries and keys cover all heads, so every head depends on every other.
OLMO2 = one_stack(
    "olmo2 olmo3",
    "embed_tokens",
    replace(
        _STACK,
        attention=replace(
            ROTARY_ATTENTION,
            norm=None,
            heads=replace(ROTARY_HEADS, obstacles=(Obstacle(reason="a norm covers the queries of all its heads"),)),
        ),
        feed_forward=(replace(_GATED, norm=()),),
    ),
)

COHERE2 = one_stack("cohere2", "embed_tokens", replace(_STACK, parallel=True, depth=Depth()))

# Cohere's older models may have a norm for the queries and keys of each head.
COHERE = one_stack(
    "cohere",
    "embed_tokens",
    replace(
        COHERE2.stacks[0],
        attention=replace(ROTARY_ATTENTION, heads=replace(ROTARY_HEADS, head_norms=("q_norm.weight", "k_norm.weight"))),
    ),
)

# Attention and feed-forward run in parallel if the block has no second norm. The class computes the size of a head.
_STABLELM_HEADS = replace(
    ROTARY_HEADS,
    count="num_heads",
    kv_count="num_key_value_heads",
    config_size=None,
    config_count=None,
    config_kv_count=None,
    obstacles=(Obstacle(reason="each of them has a norm of its own", module="q_layernorm"),),
)
STABLELM = one_stack(
    "stablelm",
    "embed_tokens",
    replace(_STACK, attention=replace(ROTARY_ATTENTION, heads=_STABLELM_HEADS), parallel=True, depth=Depth()),
)

PHI3 = one_stack(
    "phi3",
    "embed_tokens",
    Stack(
        blocks="layers",
        attention=Attention(
            module="self_attn",
            fused="self_attn.qkv_proj",
            output="self_attn.o_proj",
            norm="input_layernorm",
            heads=replace(ROTARY_HEADS, kv_count="num_key_value_heads", counts_in_config=True),
        ),
        feed_forward=(
            FeedForward(
                ("mlp.gate_up_proj",),
                "mlp.down_proj",
                "intermediate_size",
                fused_gate=True,
                norm=("post_attention_layernorm",),
            ),
        ),
    ),
)
