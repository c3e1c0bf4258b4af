"""Entries of the encoder-decoders."""

from dataclasses import replace

from laconic.model.anatomy.encoders import windowed_attention
from laconic.model.anatomy.heads import Heads
from laconic.model.anatomy.parts import (
    Anatomy,
    Attention,
    BiasTable,
    Depth,
    FeedForward,
    Stack,
    WordEmbedding,
    separate_attention,
)
from laconic.model.site import InputTokens

_QKV = "q_proj k_proj v_proj"
_PLAIN_HEADS = Heads(count="num_heads", size="head_dim")
_SHARED_WORDS = (
    WordEmbedding("shared", is_called=False),
    WordEmbedding("encoder.embed_tokens"),
    WordEmbedding("decoder.embed_tokens", InputTokens.TARGET),
)


# T5 does not scale its scores, so a configuration with another `d_kv` is all that smaller heads need.
_T5_HEADS = Heads(
    count="n_heads",
    size="key_value_proj_dim",
    width="inner_dim",
    position_bias="relative_attention_bias",
    config_size="d_kv",
    config_count="num_heads",
)
_T5_TABLE = BiasTable("layer.0.SelfAttention", "relative_attention_bias", "has_relative_attention_bias")


def _t5_attention(layer: str, name: str, heads: Heads) -> Attention:
    return separate_attention(f"{layer}.{name}", "q k v", f"{layer}.{name}.o", norm=f"{layer}.layer_norm", heads=heads)


def _t5_stack(name: str, feed_forward: str, heads: Heads, depth: Depth) -> Stack:
    path, norm = f"{feed_forward}.DenseReluDense", (f"{feed_forward}.layer_norm",)
    plain = FeedForward((f"{path}.wi",), f"{path}.wo", "d_ff", norm=norm, activation=f"{path}.act")
    # The gated and the plain form share a model type; only the projections that exist become sites.
    gated = replace(plain, inner=(f"{path}.wi_0", f"{path}.wi_1"), activation=None)
    return Stack(
        blocks=f"{name}.block",
        attention=_t5_attention("layer.0", "SelfAttention", heads),
        feed_forward=(gated, plain),
        depth=depth,
    )


def _t5(model_types: tuple[str, ...], heads: Heads, table: BiasTable | None) -> Anatomy:
    decoder_depth = Depth(count="num_decoder_layers", stack_count="num_layers", cache_stack="encoder", bias_table=table)
    decoder = replace(
        _t5_stack("decoder", "layer.2", heads, decoder_depth),
        cross_attention=_t5_attention("layer.1", "EncDecAttention", heads),
        reads=InputTokens.TARGET,
    )
    encoder = _t5_stack("encoder", "layer.1", heads, Depth(bias_table=table))
    return Anatomy(model_types=model_types, stacks=(encoder, decoder), embeddings=_SHARED_WORDS)


T5 = _t5(("t5", "mt5"), _T5_HEADS, _T5_TABLE)

# Every block has its own table of relative positions.
UMT5 = _t5(("umt5",), replace(_T5_HEADS, shares_position_bias=False), None)


def _bart_attention(module: str, heads: Heads | None, norm: str | None = None) -> Attention:
    return separate_attention(module, _QKV, f"{module}.out_proj", heads=heads, norm=norm)


def _bart_stack(name: str, heads: Heads | None, *, norm_before: bool = False) -> Stack:
    is_decoder, last_norm = name == "decoder", "final_layer_norm"
    norms = {module: f"{module}_layer_norm" if norm_before else None for module in ("self_attn", "encoder_attn")}
    feed_forward = FeedForward(("fc1",), "fc2", f"{name}_ffn_dim", activation="activation_fn")
    return Stack(
        blocks=f"{name}.layers",
        attention=_bart_attention("self_attn", heads, norms["self_attn"]),
        cross_attention=_bart_attention("encoder_attn", heads, norms["encoder_attn"]) if is_decoder else None,
        feed_forward=(replace(feed_forward, norm=(last_norm,) if norm_before else ()),),
        reads=InputTokens.TARGET if is_decoder else InputTokens.SOURCE,
        depth=Depth(
            count=f"{name}_layers",
            last_norm=None if norm_before else last_norm,
            # Some architectures have none.
            input_norm=f"{name}.layernorm_embedding",
        ),
    )


_BART_ENCODER = _bart_stack("encoder", _PLAIN_HEADS)

BART = Anatomy(
    model_types=("bart", "marian", "blenderbot-small"),
    stacks=(_BART_ENCODER, _bart_stack("decoder", _PLAIN_HEADS)),
    embeddings=_SHARED_WORDS,
)

# BART with its norms before the sub-blocks.
MBART = Anatomy(
    model_types=("mbart", "m2m_100", "pegasus", "blenderbot"),
    stacks=tuple(_bart_stack(name, _PLAIN_HEADS, norm_before=True) for name in ("encoder", "decoder")),
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
