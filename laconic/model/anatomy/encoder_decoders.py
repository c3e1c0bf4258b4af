"""Entries of the encoder-decoders."""

from dataclasses import replace

from laconic.model.anatomy.parts import (
    Anatomy,
    Attention,
    BiasTable,
    Depth,
    FeedForward,
    Heads,
    Stack,
    WordEmbedding,
    separate,
)
from laconic.model.site import InputTokens

_EMBEDDINGS = (
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
_T5_TABLE = BiasTable(
    module="layer.0.SelfAttention", table="relative_attention_bias", flag="has_relative_attention_bias"
)


def _t5_attention(layer: str, name: str) -> Attention:
    return separate(f"{layer}.{name}", "q k v", f"{layer}.{name}.o", norm=f"{layer}.layer_norm", heads=_T5_HEADS)


def _t5_feed_forward(layer: str) -> tuple[FeedForward, ...]:
    # The gated and the plain form share a model type; only the projections that exist become sites.
    path, norm = f"{layer}.DenseReluDense", (f"{layer}.layer_norm",)
    plain = FeedForward(
        inner=(f"{path}.wi",), output=f"{path}.wo", config_width="d_ff", norm=norm, activation=f"{path}.act"
    )
    return replace(plain, inner=(f"{path}.wi_0", f"{path}.wi_1"), activation=None), plain


T5 = Anatomy(
    model_types=("t5",),
    stacks=(
        Stack(
            blocks="encoder.block",
            attention=_t5_attention("layer.0", "SelfAttention"),
            feed_forward=_t5_feed_forward("layer.1"),
            depth=Depth(bias_table=_T5_TABLE),
        ),
        Stack(
            blocks="decoder.block",
            attention=_t5_attention("layer.0", "SelfAttention"),
            cross_attention=_t5_attention("layer.1", "EncDecAttention"),
            feed_forward=_t5_feed_forward("layer.2"),
            reads=InputTokens.TARGET,
            depth=Depth(
                count="num_decoder_layers", stack_count="num_layers", cache_stack="encoder", bias_table=_T5_TABLE
            ),
        ),
    ),
    embeddings=_EMBEDDINGS,
)


def _bart_attention(module: str) -> Attention:
    heads = Heads(count="num_heads", size="head_dim")
    return separate(module, "q_proj k_proj v_proj", f"{module}.out_proj", heads=heads)


def _bart_stack(name: str, reads: InputTokens) -> Stack:
    return Stack(
        blocks=f"{name}.layers",
        attention=_bart_attention("self_attn"),
        feed_forward=(
            FeedForward(inner=("fc1",), output="fc2", config_width=f"{name}_ffn_dim", activation="activation_fn"),
        ),
        reads=reads,
        depth=Depth(count=f"{name}_layers", last_norm="final_layer_norm", input_norm=f"{name}.layernorm_embedding"),
    )


_BART_ENCODER = _bart_stack("encoder", InputTokens.SOURCE)
_BART_DECODER = replace(_bart_stack("decoder", InputTokens.TARGET), cross_attention=_bart_attention("encoder_attn"))

BART = Anatomy(model_types=("bart", "marian"), stacks=(_BART_ENCODER, _BART_DECODER), embeddings=_EMBEDDINGS)

_LED = "self_attn.longformer_self_attn"

# BART with Longformer's attention in the encoder. Both attentions reshape the output of their heads to the width of the
# model, so heads can be neither removed nor resized.
LED = Anatomy(
    model_types=("led",),
    stacks=(
        replace(
            _BART_ENCODER,
            attention=replace(
                separate(_LED, "query key value", "self_attn.output"),
                global_query=f"{_LED}.query_global",
                global_key=f"{_LED}.key_global",
                global_value=f"{_LED}.value_global",
                tokens_first=True,
            ),
            depth=Depth(
                count="encoder_layers",
                lists=("attention_window",),
                last_norm="final_layer_norm",
                input_norm="encoder.layernorm_embedding",
            ),
        ),
        replace(
            _BART_DECODER,
            attention=replace(_bart_attention("self_attn"), heads=None),
            cross_attention=replace(_bart_attention("encoder_attn"), heads=None),
        ),
    ),
    embeddings=_EMBEDDINGS,
    global_attention=True,
)
