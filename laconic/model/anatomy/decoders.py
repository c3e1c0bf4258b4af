"""Entries of the decoders and the encoder-decoders."""

from dataclasses import replace

from laconic.model.anatomy.encoders import windowed_attention
from laconic.model.anatomy.parts import (
    Anatomy,
    Attention,
    BiasTable,
    Depth,
    FeedForward,
    Heads,
    Stack,
    WordEmbedding,
    one_stack,
    separate_attention,
)
from laconic.model.site import InputTokens

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
            heads=Heads(size="head_size", can_shrink=False),
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

# Rotary positions rotate each head on its own. Heads that share keys and values are removed together.
_ROTARY = Heads(
    size="head_dim",
    can_shrink=False,
    config_size="head_dim",
    config_count="num_attention_heads",
    config_kv_count="num_key_value_heads",
)

LLAMA = one_stack(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text",
    "embed_tokens",
    Stack(
        blocks="layers",
        attention=separate_attention("self_attn", _QKV, "self_attn.o_proj", norm="input_layernorm", heads=_ROTARY),
        feed_forward=(
            FeedForward(
                ("mlp.gate_proj", "mlp.up_proj"),
                "mlp.down_proj",
                "intermediate_size",
                width="mlp.intermediate_size",
                # Gemma 2 and 3 have both, and the second one after the attention.
                norm=("pre_feedforward_layernorm", "post_attention_layernorm"),
            ),
        ),
        # Gemma 2 and 3; the second is missing elsewhere.
        depth=Depth(output_norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    ),
)

PHI = one_stack(
    "phi",
    "embed_tokens",
    Stack(
        blocks="layers",
        attention=separate_attention("self_attn", _QKV, "self_attn.dense", norm="input_layernorm", heads=_ROTARY),
        feed_forward=(FeedForward(("mlp.fc1",), "mlp.fc2", "intermediate_size", activation="mlp.activation_fn"),),
        parallel=True,
    ),
)

_SHARED_WORDS = (
    WordEmbedding("shared", is_called=False),
    WordEmbedding("encoder.embed_tokens"),
    WordEmbedding("decoder.embed_tokens", InputTokens.TARGET),
)


def _t5_attention(layer: str, name: str) -> Attention:
    # T5 does not scale its scores, so a configuration with another `d_kv` is all that smaller heads need.
    heads = Heads(
        count="n_heads",
        size="key_value_proj_dim",
        width="inner_dim",
        position_bias="relative_attention_bias",
        config_size="d_kv",
        config_count="num_heads",
    )
    return separate_attention(f"{layer}.{name}", "q k v", f"{layer}.{name}.o", norm=f"{layer}.layer_norm", heads=heads)


def _t5_stack(name: str, feed_forward: str, depth: Depth) -> Stack:
    path, norm = f"{feed_forward}.DenseReluDense", (f"{feed_forward}.layer_norm",)
    plain = FeedForward((f"{path}.wi",), f"{path}.wo", "d_ff", norm=norm, activation=f"{path}.act")
    # The gated and the plain form share a model type; only the projections that exist become sites.
    gated = replace(plain, inner=(f"{path}.wi_0", f"{path}.wi_1"), activation=None)
    table = BiasTable("layer.0.SelfAttention", "relative_attention_bias", "has_relative_attention_bias")
    return Stack(
        blocks=f"{name}.block",
        attention=_t5_attention("layer.0", "SelfAttention"),
        feed_forward=(gated, plain),
        depth=replace(depth, bias_table=table),
    )


T5 = Anatomy(
    model_types=("t5",),
    stacks=(
        _t5_stack("encoder", "layer.1", Depth()),
        replace(
            _t5_stack(
                "decoder",
                "layer.2",
                Depth(count="num_decoder_layers", stack_count="num_layers", cache_stack="encoder"),
            ),
            cross_attention=_t5_attention("layer.1", "EncDecAttention"),
            reads=InputTokens.TARGET,
        ),
    ),
    embeddings=_SHARED_WORDS,
)


def _bart_attention(module: str, heads: Heads | None) -> Attention:
    return separate_attention(module, _QKV, f"{module}.out_proj", heads=heads)


def _bart_stack(name: str, heads: Heads | None) -> Stack:
    is_decoder = name == "decoder"
    return Stack(
        blocks=f"{name}.layers",
        attention=_bart_attention("self_attn", heads),
        cross_attention=_bart_attention("encoder_attn", heads) if is_decoder else None,
        feed_forward=(FeedForward(("fc1",), "fc2", f"{name}_ffn_dim", activation="activation_fn"),),
        reads=InputTokens.TARGET if is_decoder else InputTokens.SOURCE,
        depth=Depth(count=f"{name}_layers", last_norm="final_layer_norm", input_norm=f"{name}.layernorm_embedding"),
    )


_BART_ENCODER = _bart_stack("encoder", _PLAIN_HEADS)

BART = Anatomy(
    model_types=("bart", "marian"),
    stacks=(_BART_ENCODER, _bart_stack("decoder", _PLAIN_HEADS)),
    embeddings=_SHARED_WORDS,
)

# BART with Longformer's attention in the encoder. The decoder too reshapes its heads to the width of the model, so that
# they can be neither removed nor resized.
LED = Anatomy(
    model_types=("led",),
    stacks=(
        replace(
            _BART_ENCODER,
            attention=windowed_attention("self_attn.longformer_self_attn", "self_attn.output"),
            depth=Depth(
                count="encoder_layers",
                lists=("attention_window",),
                last_norm="final_layer_norm",
                input_norm="encoder.layernorm_embedding",
            ),
        ),
        _bart_stack("decoder", heads=None),
    ),
    embeddings=_SHARED_WORDS,
    global_attention=True,
)
