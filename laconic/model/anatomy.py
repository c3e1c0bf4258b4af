"""Where the linears of each architecture are. Data only: a further architecture is one entry.

Paths are written from the base model (`model.base_model`), and inside a stack from one block. The roles matter: the
query, key and value of one attention read the same input, as do the gate and the up projection, so what is
measured of that input is measured once.
"""

from dataclasses import dataclass

from laconic.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The attributes of an attention module that say how its projections are cut into heads.

    Only where scores are products of queries with keys and nothing else (a bias may be added to them), each head has
    keys of its own, and what scales the scores was computed when the module was made.

    module: path of the attention module.
    count:  its attribute with the number of heads.
    size:   and with the size of a head.
    width:  and with the product of the two, where it keeps one.
    config: the configuration's name for the size, where it may be any.
    """

    module: str
    count: str
    size: str
    width: str | None = None
    config: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Paths of the projections of one attention; `fused` stands for query, key and value in one matrix, in this order.

    heads: how it is cut into heads; None where these cannot shrink, as where queries and keys are rotated.
    """

    output: str
    query: str | None = None
    key: str | None = None
    value: str | None = None
    fused: str | None = None
    heads: Heads | None = None


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """`inner` are the projections that read the block (one, or gate and up), `output` writes it back."""

    inner: tuple[str, ...]
    output: str


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A `ModuleList` of equal blocks. `reads` says which tokens pass: the `source`'s or the `target`'s."""

    blocks: str
    attention: Attention
    feed_forward: tuple[FeedForward, ...]
    cross_attention: Attention | None = None
    reads: str = "source"


@dataclass(frozen=True)
class Table:
    """A word embedding, and whose tokens it looks up."""

    path: str
    reads: str = "source"


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One architecture; `embeddings` are the word embeddings in the order in which transformers ties them."""

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    embeddings: tuple[Table, ...]


BERT = Anatomy(
    model_types=("bert", "roberta"),
    stacks=(
        Stack(
            blocks="encoder.layer",
            attention=Attention(
                query="attention.self.query",
                key="attention.self.key",
                value="attention.self.value",
                output="attention.output.dense",
                heads=Heads(
                    module="attention.self",
                    count="num_attention_heads",
                    size="attention_head_size",
                    width="all_head_size",
                ),
            ),
            feed_forward=(FeedForward(inner=("intermediate.dense",), output="output.dense"),),
        ),
    ),
    embeddings=(Table("embeddings.word_embeddings"),),
)

DISTILBERT = Anatomy(
    model_types=("distilbert",),
    stacks=(
        Stack(
            blocks="transformer.layer",
            attention=Attention(
                query="attention.q_lin",
                key="attention.k_lin",
                value="attention.v_lin",
                output="attention.out_lin",
                heads=Heads(module="attention", count="n_heads", size="attention_head_size"),
            ),
            feed_forward=(FeedForward(inner=("ffn.lin1",), output="ffn.lin2"),),
        ),
    ),
    embeddings=(Table("embeddings.word_embeddings"),),
)

GPT2 = Anatomy(
    model_types=("gpt2",),
    stacks=(
        Stack(
            blocks="h",
            attention=Attention(
                fused="attn.c_attn",
                output="attn.c_proj",
                heads=Heads(module="attn", count="num_heads", size="head_dim", width="split_size"),
            ),
            feed_forward=(FeedForward(inner=("mlp.c_fc",), output="mlp.c_proj"),),
        ),
    ),
    embeddings=(Table("wte"),),
)

LLAMA = Anatomy(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    stacks=(
        Stack(
            blocks="layers",
            attention=Attention(
                query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj", output="self_attn.o_proj"
            ),
            feed_forward=(FeedForward(inner=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"),),
        ),
    ),
    embeddings=(Table("embed_tokens"),),
)


# `shared` itself is not called: the two stacks call tied copies of it.
ENCODER_DECODER_TABLES = (Table("shared"), Table("encoder.embed_tokens"), Table("decoder.embed_tokens", "target"))


def _t5_attention(path: str) -> Attention:
    # Its scores are not scaled at all, so a configuration with another `d_kv` is all that smaller heads need.
    heads = Heads(module=path, count="n_heads", size="key_value_proj_dim", width="inner_dim", config="d_kv")
    return Attention(query=f"{path}.q", key=f"{path}.k", value=f"{path}.v", output=f"{path}.o", heads=heads)


def _t5_feed_forward(path: str) -> tuple[FeedForward, ...]:
    # The gated and the plain form share a model type; only the projections that exist become sites.
    return (
        FeedForward(inner=(f"{path}.wi_0", f"{path}.wi_1"), output=f"{path}.wo"),
        FeedForward(inner=(f"{path}.wi",), output=f"{path}.wo"),
    )


T5 = Anatomy(
    model_types=("t5",),
    stacks=(
        Stack(
            blocks="encoder.block",
            attention=_t5_attention("layer.0.SelfAttention"),
            feed_forward=_t5_feed_forward("layer.1.DenseReluDense"),
        ),
        Stack(
            blocks="decoder.block",
            attention=_t5_attention("layer.0.SelfAttention"),
            cross_attention=_t5_attention("layer.1.EncDecAttention"),
            feed_forward=_t5_feed_forward("layer.2.DenseReluDense"),
            reads="target",
        ),
    ),
    embeddings=ENCODER_DECODER_TABLES,
)


def _bart_attention(path: str) -> Attention:
    return Attention(
        query=f"{path}.q_proj",
        key=f"{path}.k_proj",
        value=f"{path}.v_proj",
        output=f"{path}.out_proj",
        heads=Heads(module=path, count="num_heads", size="head_dim"),
    )


BART = Anatomy(
    model_types=("bart",),
    stacks=(
        Stack(
            blocks="encoder.layers",
            attention=_bart_attention("self_attn"),
            feed_forward=(FeedForward(inner=("fc1",), output="fc2"),),
        ),
        Stack(
            blocks="decoder.layers",
            attention=_bart_attention("self_attn"),
            cross_attention=_bart_attention("encoder_attn"),
            feed_forward=(FeedForward(inner=("fc1",), output="fc2"),),
            reads="target",
        ),
    ),
    embeddings=ENCODER_DECODER_TABLES,
)

ANATOMIES: tuple[Anatomy, ...] = (BERT, DISTILBERT, GPT2, LLAMA, T5, BART)


def anatomy_of(model_type: str) -> Anatomy:
    """The entry of a transformers `model_type`.

    Raises:
        UserError: there is none; the sentence lists the known architectures.
    """
    for anatomy in ANATOMIES:
        if model_type in anatomy.model_types:
            return anatomy
    known = ", ".join(sorted(name for anatomy in ANATOMIES for name in anatomy.model_types))
    raise UserError(f"The architecture '{model_type}' has no entry in laconic.model.anatomy; known are {known}.")
