"""Where the linears of the encoders are."""

from dataclasses import replace

from laconic.model.anatomy.parts import Anatomy, Attention, Depth, FeedForward, Heads, Stack, Table

_WORDS = (Table("embeddings.word_embeddings"),)
_FEED_FORWARD = (
    FeedForward(
        inner=("intermediate.dense",),
        output="output.dense",
        config="intermediate_size",
        activation="intermediate.intermediate_act_fn",
    ),
)
_DEPTH = Depth(closing="output.LayerNorm", entry="embeddings.LayerNorm")

BERT = Anatomy(
    model_types=("bert", "roberta", "electra"),
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
            feed_forward=_FEED_FORWARD,
            depth=_DEPTH,
        ),
    ),
    embeddings=_WORDS,
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
            feed_forward=(
                FeedForward(inner=("ffn.lin1",), output="ffn.lin2", config="hidden_dim", activation="ffn.activation"),
            ),
            depth=Depth(closing="output_layer_norm", entry="embeddings.LayerNorm"),
        ),
    ),
    embeddings=_WORDS,
)

# One block, called once a layer.
ALBERT = Anatomy(
    model_types=("albert",),
    stacks=(
        Stack(
            blocks="encoder.albert_layer_groups.*.albert_layers",
            attention=Attention(
                query="attention.query",
                key="attention.key",
                value="attention.value",
                output="attention.dense",
                heads=Heads(
                    module="attention", count="num_attention_heads", size="attention_head_size", width="all_head_size"
                ),
            ),
            feed_forward=(
                FeedForward(inner=("ffn",), output="ffn_output", config="intermediate_size", activation="activation"),
            ),
            depth=Depth(visited="num_hidden_groups"),
        ),
    ),
    embeddings=_WORDS,
)

# The biases of query and value are parameters of the attention, apart from its matrix.
DEBERTA = Anatomy(
    model_types=("deberta",),
    stacks=(
        Stack(
            blocks="encoder.layer",
            attention=Attention(
                fused="attention.self.in_proj",
                fused_layout="by-head",
                position_key="attention.self.pos_proj",
                position_query="attention.self.pos_q_proj",
                output="attention.output.dense",
                heads=Heads(
                    module="attention.self",
                    count="num_attention_heads",
                    size="attention_head_size",
                    width="all_head_size",
                    vectors=("q_bias", "v_bias"),
                    mixers=("head_logits_proj", "head_weights_proj"),
                    shrinks=False,
                ),
            ),
            feed_forward=_FEED_FORWARD,
            depth=_DEPTH,
        ),
    ),
    embeddings=_WORDS,
)

DEBERTA_V2 = Anatomy(
    model_types=("deberta-v2",),
    stacks=(
        Stack(
            blocks="encoder.layer",
            attention=Attention(
                query="attention.self.query_proj",
                key="attention.self.key_proj",
                value="attention.self.value_proj",
                position_key="attention.self.pos_key_proj",
                position_query="attention.self.pos_query_proj",
                shares_positions=True,
                output="attention.output.dense",
                heads=Heads(
                    module="attention.self",
                    count="num_attention_heads",
                    size="attention_head_size",
                    width="all_head_size",
                    shrinks=False,
                ),
            ),
            feed_forward=_FEED_FORWARD,
            # Its convolution reads what enters the first block and what leaves it.
            depth=replace(_DEPTH, first_stays="encoder.conv"),
        ),
    ),
    embeddings=_WORDS,
)

# What its heads give is reshaped to the width of the model, so all of them stay.
LONGFORMER = Anatomy(
    model_types=("longformer",),
    stacks=(
        Stack(
            blocks="encoder.layer",
            attention=Attention(
                query="attention.self.query",
                key="attention.self.key",
                value="attention.self.value",
                global_query="attention.self.query_global",
                global_key="attention.self.key_global",
                global_value="attention.self.value_global",
                output="attention.output.dense",
                tokens_first=True,
            ),
            feed_forward=_FEED_FORWARD,
            depth=replace(_DEPTH, lists=("attention_window",)),
        ),
    ),
    embeddings=_WORDS,
    global_attention=True,
)

MODERNBERT = Anatomy(
    model_types=("modernbert",),
    stacks=(
        Stack(
            blocks="layers",
            attention=Attention(
                fused="attn.Wqkv",
                output="attn.Wo",
                norm="attn_norm",
                heads=Heads(module="attn", size="head_dim", shrinks=False),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.Wi",), output="mlp.Wo", config="intermediate_size", fused_gate=True, norm=("mlp_norm",)
                ),
            ),
            # The first block alone reads the stream without a norm.
            depth=Depth(first_stays="", entry="embeddings.norm"),
        ),
    ),
    embeddings=(Table("embeddings.tok_embeddings"),),
)
