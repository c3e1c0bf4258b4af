"""Entries of the decoders with their own names of modules, most of them older than LLaMA."""

from dataclasses import replace

from laconic.model.anatomy.heads import ROTATED, Heads, Obstacle
from laconic.model.anatomy.parts import Attention, Depth, FeedForward, Stack, one_stack, separate_attention

_QKV = "q_proj k_proj v_proj"
_PLAIN_HEADS = Heads(count="num_heads", size="head_dim")

GPT2 = one_stack(
    "gpt2",
    "wte",
    Stack(
        blocks="h",
        attention=Attention(
            module="attn",
            fused="attn.c_attn",
            output="attn.c_proj",
            norm="ln_1",
            heads=replace(_PLAIN_HEADS, width="split_size"),
        ),
        feed_forward=(FeedForward(("mlp.c_fc",), "mlp.c_proj", "n_inner", norm=("ln_2",), activation="mlp.act"),),
        depth=Depth(score_scale_flag="scale_attn_by_inverse_layer_idx"),
    ),
)

GPT_NEO = one_stack(
    "gpt_neo",
    "wte",
    Stack(
        blocks="h",
        attention=separate_attention(
            "attn.attention", _QKV, "attn.attention.out_proj", norm="ln_1", heads=_PLAIN_HEADS
        ),
        feed_forward=(
            FeedForward(("mlp.c_fc",), "mlp.c_proj", "intermediate_size", norm=("ln_2",), activation="mlp.act"),
        ),
        depth=Depth(lists=("attention_layers",), repeated_list="attention_types"),
    ),
)

# Attention and feed-forward may run in parallel, but each has its own norm.
GPT_NEOX = one_stack(
    "gpt_neox",
    "embed_in",
    Stack(
        blocks="layers",
        attention=Attention(
            module="attention",
            fused="attention.query_key_value",
            fused_layout="by-head",
            output="attention.dense",
            norm="input_layernorm",
            heads=Heads(size="head_size", can_shrink=False, size_obstacle=ROTATED),
        ),
        feed_forward=(
            FeedForward(
                ("mlp.dense_h_to_4h",),
                "mlp.dense_4h_to_h",
                "intermediate_size",
                norm=("post_attention_layernorm",),
                activation="mlp.act",
            ),
        ),
    ),
)

OPT = one_stack(
    "opt",
    "decoder.embed_tokens",
    Stack(
        blocks="decoder.layers",
        attention=separate_attention(
            "self_attn", _QKV, "self_attn.out_proj", norm="self_attn_layer_norm", heads=_PLAIN_HEADS
        ),
        feed_forward=(FeedForward(("fc1",), "fc2", "ffn_dim", norm=("final_layer_norm",), activation="activation_fn"),),
        pre_norm_flag="do_layer_norm_before",
        # Only in post-norm models; in pre-norm models this norm is inside the block.
        depth=Depth(last_norm="final_layer_norm"),
    ),
)

# Attention and feed-forward read the same norm.
GPTJ = one_stack(
    "gptj",
    "wte",
    Stack(
        blocks="h",
        attention=separate_attention(
            "attn",
            _QKV,
            "attn.out_proj",
            norm="ln_1",
            heads=Heads(count="num_attention_heads", size="head_dim", can_shrink=False, size_obstacle=ROTATED),
        ),
        feed_forward=(FeedForward(("mlp.fc_in",), "mlp.fc_out", "n_inner", activation="mlp.act"),),
        parallel=True,
    ),
)

# With `multi_query` all heads share one key.
GPT_BIGCODE = one_stack(
    "gpt_bigcode",
    "wte",
    Stack(
        blocks="h",
        attention=Attention(
            module="attn",
            fused="attn.c_attn",
            fused_layout="by-head",
            output="attn.c_proj",
            norm="ln_1",
            heads=replace(_PLAIN_HEADS, kv_count="kv_heads", width="embed_dim", group_size="num_key_value_groups"),
        ),
        feed_forward=(
            FeedForward(
                ("mlp.c_fc",), "mlp.c_proj", "n_inner", width="inner_dim", norm=("ln_2",), activation="mlp.act"
            ),
        ),
    ),
)

_ALIBI = "the class computes the ALiBi slope of each head from its number"

BLOOM = one_stack(
    "bloom",
    "word_embeddings",
    Stack(
        blocks="h",
        attention=Attention(
            module="self_attention",
            fused="self_attention.query_key_value",
            fused_layout="by-head",
            output="self_attention.dense",
            norm="input_layernorm",
            heads=replace(_PLAIN_HEADS, obstacles=(Obstacle(reason=_ALIBI),)),
        ),
        feed_forward=(
            FeedForward(
                ("mlp.dense_h_to_4h",),
                "mlp.dense_4h_to_h",
                None,
                norm=("post_attention_layernorm",),
                activation="mlp.gelu_impl",
            ),
        ),
        stream_norm_flag="apply_residual_connection_post_layernorm",
        depth=Depth(input_norm="word_embeddings_layernorm"),
    ),
)

MPT = one_stack(
    "mpt",
    "wte",
    Stack(
        blocks="blocks",
        attention=Attention(
            module="attn",
            fused="attn.Wqkv",
            output="attn.out_proj",
            norm="norm_1",
            heads=Heads(count="n_heads", size="head_dim", clip="clip_qkv", obstacles=(Obstacle(reason=_ALIBI),)),
        ),
        feed_forward=(FeedForward(("ffn.up_proj",), "ffn.down_proj", None, norm=("norm_2",), activation="ffn.act"),),
    ),
)

# The heads share several keys (40B), one (7B), or none (RW). Attention and feed-forward run in parallel with two norms
# or one, or one after the other.
FALCON = one_stack(
    "falcon",
    "word_embeddings",
    Stack(
        blocks="h",
        attention=Attention(
            module="self_attention",
            fused="self_attention.query_key_value",
            fused_layout="by-head",
            output="self_attention.dense",
            norm="ln_attn input_layernorm",
            heads=replace(
                _PLAIN_HEADS,
                kv_count="num_kv_heads",
                can_shrink=False,
                obstacles=(Obstacle(reason=_ALIBI, flag="config.alibi"),),
            ),
        ),
        feed_forward=(
            FeedForward(
                ("mlp.dense_h_to_4h",),
                "mlp.dense_4h_to_h",
                "ffn_hidden_size",
                norm=("ln_mlp", "post_attention_layernorm"),
                activation="mlp.act",
            ),
        ),
        parallel=True,
    ),
)
