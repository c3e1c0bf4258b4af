"""Where the linears of the encoder-decoders are."""

from dataclasses import replace

from laconic.model.anatomy.parts import Anatomy, Attention, BiasTable, Depth, FeedForward, Heads, Stack, Table
from laconic.model.site import InputTokens

_TABLES = (
    Table("shared", called=False),
    Table("encoder.embed_tokens"),
    Table("decoder.embed_tokens", InputTokens.TARGET),
)


def _t5_attention(path: str) -> Attention:
    norm = f"{path.rpartition('.')[0]}.layer_norm"
    # Its scores are not scaled at all, so a configuration with another `d_kv` is all that smaller heads need.
    heads = Heads(
        module=path,
        count="n_heads",
        size="key_value_proj_dim",
        width="inner_dim",
        bias="relative_attention_bias",
        config="d_kv",
        config_count="num_heads",
    )
    return Attention(query=f"{path}.q", key=f"{path}.k", value=f"{path}.v", output=f"{path}.o", norm=norm, heads=heads)


def _t5_feed_forward(path: str) -> tuple[FeedForward, ...]:
    # The gated and the plain form share a model type; only the projections that exist become sites.
    norm = (f"{path.rpartition('.')[0]}.layer_norm",)
    return (
        FeedForward(inner=(f"{path}.wi_0", f"{path}.wi_1"), output=f"{path}.wo", config="d_ff", norm=norm),
        FeedForward(inner=(f"{path}.wi",), output=f"{path}.wo", config="d_ff", norm=norm, activation=f"{path}.act"),
    )


_T5_TABLE = BiasTable(
    module="layer.0.SelfAttention", table="relative_attention_bias", flag="has_relative_attention_bias"
)

T5 = Anatomy(
    model_types=("t5",),
    stacks=(
        Stack(
            blocks="encoder.block",
            attention=_t5_attention("layer.0.SelfAttention"),
            feed_forward=_t5_feed_forward("layer.1.DenseReluDense"),
            depth=Depth(bias_table=_T5_TABLE),
        ),
        Stack(
            blocks="decoder.block",
            attention=_t5_attention("layer.0.SelfAttention"),
            cross_attention=_t5_attention("layer.1.EncDecAttention"),
            feed_forward=_t5_feed_forward("layer.2.DenseReluDense"),
            reads=InputTokens.TARGET,
            depth=Depth(count="num_decoder_layers", own_count="num_layers", cached_by="encoder", bias_table=_T5_TABLE),
        ),
    ),
    embeddings=_TABLES,
)


def _bart_attention(path: str) -> Attention:
    return Attention(
        query=f"{path}.q_proj",
        key=f"{path}.k_proj",
        value=f"{path}.v_proj",
        output=f"{path}.out_proj",
        heads=Heads(module=path, count="num_heads", size="head_dim"),
    )


def _bart_feed_forward(config: str) -> tuple[FeedForward, ...]:
    return (FeedForward(inner=("fc1",), output="fc2", config=config, activation="activation_fn"),)


BART = Anatomy(
    model_types=("bart", "marian"),
    stacks=(
        Stack(
            blocks="encoder.layers",
            attention=_bart_attention("self_attn"),
            feed_forward=_bart_feed_forward("encoder_ffn_dim"),
            depth=Depth(count="encoder_layers", closing="final_layer_norm", entry="encoder.layernorm_embedding"),
        ),
        Stack(
            blocks="decoder.layers",
            attention=_bart_attention("self_attn"),
            cross_attention=_bart_attention("encoder_attn"),
            feed_forward=_bart_feed_forward("decoder_ffn_dim"),
            reads=InputTokens.TARGET,
            depth=Depth(count="decoder_layers", closing="final_layer_norm", entry="decoder.layernorm_embedding"),
        ),
    ),
    embeddings=_TABLES,
)

_LED = "self_attn.longformer_self_attn"
_, _BART_DECODER = BART.stacks

# BART with Longformer's attention in the encoder; both it and that of the decoder reshape what their heads give to the
# width of the model, so these stay as many and as large.
LED = Anatomy(
    model_types=("led",),
    stacks=(
        Stack(
            blocks="encoder.layers",
            attention=Attention(
                query=f"{_LED}.query",
                key=f"{_LED}.key",
                value=f"{_LED}.value",
                global_query=f"{_LED}.query_global",
                global_key=f"{_LED}.key_global",
                global_value=f"{_LED}.value_global",
                output="self_attn.output",
                tokens_first=True,
            ),
            feed_forward=_bart_feed_forward("encoder_ffn_dim"),
            depth=Depth(
                count="encoder_layers",
                lists=("attention_window",),
                closing="final_layer_norm",
                entry="encoder.layernorm_embedding",
            ),
        ),
        replace(
            _BART_DECODER,
            attention=replace(_bart_attention("self_attn"), heads=None),
            cross_attention=replace(_bart_attention("encoder_attn"), heads=None),
        ),
    ),
    embeddings=_TABLES,
    global_attention=True,
)
