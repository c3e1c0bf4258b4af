"""Entries of the encoders."""

from dataclasses import replace

from laconic.model.anatomy.parts import Anatomy, Attention, Depth, FeedForward, Heads, Stack, WordEmbedding, separate

_WORDS = (WordEmbedding("embeddings.word_embeddings"),)
_HEADS = Heads(count="num_attention_heads", size="attention_head_size", width="all_head_size")
_BERT_STACK = Stack(
    blocks="encoder.layer",
    attention=separate("attention.self", "query key value", "attention.output.dense", heads=_HEADS),
    feed_forward=(
        FeedForward(
            inner=("intermediate.dense",),
            output="output.dense",
            config_width="intermediate_size",
            activation="intermediate.intermediate_act_fn",
        ),
    ),
    depth=Depth(last_norm="output.LayerNorm", input_norm="embeddings.LayerNorm"),
)

BERT = Anatomy(model_types=("bert", "roberta", "electra"), stacks=(_BERT_STACK,), embeddings=_WORDS)

DISTILBERT = Anatomy(
    model_types=("distilbert",),
    stacks=(
        Stack(
            blocks="transformer.layer",
            attention=separate(
                "attention",
                "q_lin k_lin v_lin",
                "attention.out_lin",
                heads=Heads(count="n_heads", size="attention_head_size"),
            ),
            feed_forward=(
                FeedForward(
                    inner=("ffn.lin1",), output="ffn.lin2", config_width="hidden_dim", activation="ffn.activation"
                ),
            ),
            depth=Depth(last_norm="output_layer_norm", input_norm="embeddings.LayerNorm"),
        ),
    ),
    embeddings=_WORDS,
)

# One block, called once per layer.
ALBERT = Anatomy(
    model_types=("albert",),
    stacks=(
        Stack(
            blocks="encoder.albert_layer_groups.*.albert_layers",
            attention=separate("attention", "query key value", "attention.dense", heads=_HEADS),
            feed_forward=(
                FeedForward(
                    inner=("ffn",), output="ffn_output", config_width="intermediate_size", activation="activation"
                ),
            ),
            depth=Depth(group_count="num_hidden_groups"),
        ),
    ),
    embeddings=_WORDS,
)

# The biases of query and value are parameters of the attention module.
DEBERTA = Anatomy(
    model_types=("deberta",),
    stacks=(
        replace(
            _BERT_STACK,
            attention=Attention(
                module="attention.self",
                fused="attention.self.in_proj",
                fused_layout="by-head",
                position_key="attention.self.pos_proj",
                position_query="attention.self.pos_q_proj",
                output="attention.output.dense",
                heads=replace(
                    _HEADS,
                    head_vectors=("q_bias", "v_bias"),
                    mixers=("head_logits_proj", "head_weights_proj"),
                    can_shrink=False,
                ),
            ),
        ),
    ),
    embeddings=_WORDS,
)

DEBERTA_V2 = Anatomy(
    model_types=("deberta-v2",),
    stacks=(
        replace(
            _BERT_STACK,
            attention=replace(
                separate("attention.self", "query_proj key_proj value_proj", "attention.output.dense"),
                position_key="attention.self.pos_key_proj",
                position_query="attention.self.pos_query_proj",
                shares_positions=True,
                heads=replace(_HEADS, can_shrink=False),
            ),
            # Its convolution reads the input and the output of the first block.
            depth=Depth(last_norm="output.LayerNorm", input_norm="embeddings.LayerNorm", first_only="encoder.conv"),
        ),
    ),
    embeddings=_WORDS,
)

# The output of its heads is reshaped to the width of the model, so no head can go.
LONGFORMER = Anatomy(
    model_types=("longformer",),
    stacks=(
        replace(
            _BERT_STACK,
            attention=replace(
                separate("attention.self", "query key value", "attention.output.dense"),
                global_query="attention.self.query_global",
                global_key="attention.self.key_global",
                global_value="attention.self.value_global",
                tokens_first=True,
            ),
            depth=Depth(last_norm="output.LayerNorm", input_norm="embeddings.LayerNorm", lists=("attention_window",)),
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
                module="attn",
                fused="attn.Wqkv",
                output="attn.Wo",
                norm="attn_norm",
                heads=Heads(size="head_dim", can_shrink=False),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.Wi",),
                    output="mlp.Wo",
                    config_width="intermediate_size",
                    fused_gate=True,
                    norm=("mlp_norm",),
                ),
            ),
            # Only the first block reads the residual stream without a norm.
            depth=Depth(first_only="", input_norm="embeddings.norm"),
        ),
    ),
    embeddings=(WordEmbedding("embeddings.tok_embeddings"),),
)
