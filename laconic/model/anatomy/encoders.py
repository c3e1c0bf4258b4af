"""Entries of the encoders."""

from dataclasses import replace

from laconic.model.anatomy.heads import ROTATED, Heads, Obstacle
from laconic.model.anatomy.parts import Attention, Depth, FeedForward, Stack, one_stack, separate_attention

_WORDS = "embeddings.word_embeddings"
_OUTPUT = "attention.output.dense"
_QKV = "query key value"
_HEADS = Heads(count="num_attention_heads", size="attention_head_size", width="all_head_size")
_RELATIVE = "its scores have terms of relative positions"
_DEPTH = Depth(last_norm="output.LayerNorm", input_norm="embeddings.LayerNorm")
_BERT_STACK = Stack(
    blocks="encoder.layer",
    attention=separate_attention("attention.self", _QKV, _OUTPUT, heads=_HEADS),
    feed_forward=(
        FeedForward(
            ("intermediate.dense",), "output.dense", "intermediate_size", activation="intermediate.intermediate_act_fn"
        ),
    ),
    depth=_DEPTH,
)

BERT = one_stack("bert roberta electra xlm-roberta camembert", _WORDS, _BERT_STACK)

_REPLACED = "its class builds other attentions for short texts"
_BIG_BIRD_HEADS = replace(_HEADS, can_shrink=False, size_obstacle=_REPLACED, obstacles=(Obstacle(reason=_REPLACED),))
BIG_BIRD = one_stack(
    "big_bird",
    _WORDS,
    replace(_BERT_STACK, attention=separate_attention("attention.self", _QKV, _OUTPUT, heads=_BIG_BIRD_HEADS)),
)

# One table of relative positions, outside the blocks, has a column for each head.
MPNET = one_stack(
    "mpnet",
    _WORDS,
    replace(
        _BERT_STACK,
        attention=separate_attention(
            "attention.attn",
            "q k v",
            "attention.attn.o",
            heads=replace(_HEADS, scales_in_forward=True, model_position_bias="encoder.relative_attention_bias"),
        ),
    ),
)

DISTILBERT = one_stack(
    "distilbert",
    _WORDS,
    Stack(
        blocks="transformer.layer",
        attention=separate_attention(
            "attention",
            "q_lin k_lin v_lin",
            "attention.out_lin",
            heads=Heads(count="n_heads", size="attention_head_size"),
        ),
        feed_forward=(FeedForward(("ffn.lin1",), "ffn.lin2", "hidden_dim", activation="ffn.activation"),),
        depth=Depth(last_norm="output_layer_norm", input_norm="embeddings.LayerNorm"),
    ),
)

# One block, called once per layer.
ALBERT = one_stack(
    "albert",
    _WORDS,
    Stack(
        blocks="encoder.albert_layer_groups.*.albert_layers",
        attention=separate_attention("attention", _QKV, "attention.dense", heads=_HEADS),
        feed_forward=(FeedForward(("ffn",), "ffn_output", "intermediate_size", activation="activation"),),
        depth=Depth(group_count="num_hidden_groups"),
    ),
)

# The biases of query and value are parameters of the attention module.
_DEBERTA_ATTENTION = Attention(
    module="attention.self",
    fused="attention.self.in_proj",
    fused_layout="by-head",
    position_key="attention.self.pos_proj",
    position_query="attention.self.pos_q_proj",
    output=_OUTPUT,
    heads=replace(
        _HEADS,
        head_vectors=("q_bias", "v_bias"),
        mixers=("head_logits_proj", "head_weights_proj"),
        can_shrink=False,
        size_obstacle=_RELATIVE,
    ),
)
DEBERTA = one_stack("deberta", _WORDS, replace(_BERT_STACK, attention=_DEBERTA_ATTENTION))

_DEBERTA_V2_ATTENTION = replace(
    separate_attention(
        "attention.self",
        "query_proj key_proj value_proj",
        _OUTPUT,
        heads=replace(_HEADS, can_shrink=False, size_obstacle=_RELATIVE),
    ),
    position_key="attention.self.pos_key_proj",
    position_query="attention.self.pos_query_proj",
    shares_positions=True,
)
# A convolution reads the input and the output of the first block.
_DEBERTA_V2_DEPTH = replace(_DEPTH, first_only="encoder.conv")
DEBERTA_V2 = one_stack(
    "deberta-v2", _WORDS, replace(_BERT_STACK, attention=_DEBERTA_V2_ATTENTION, depth=_DEBERTA_V2_DEPTH)
)


def windowed_attention(module: str, output: str) -> Attention:
    """Longformer's attention in which some tokens are global.

    It reshapes the output of its heads to the width of the model, so heads can be neither removed nor resized.

    Args:
        module: the attention module.
        output: the path of the output projection from the block.
    """
    paths = {f"global_{name}": f"{module}.{name}_global" for name in ("query", "key", "value")}
    return replace(separate_attention(module, _QKV, output), **paths, tokens_first=True)


LONGFORMER = replace(
    one_stack(
        "longformer",
        _WORDS,
        replace(
            _BERT_STACK,
            attention=windowed_attention("attention.self", _OUTPUT),
            depth=replace(_DEPTH, lists=("attention_window",)),
        ),
    ),
    global_attention=True,
)

MODERNBERT = one_stack(
    "modernbert",
    "embeddings.tok_embeddings",
    Stack(
        blocks="layers",
        attention=Attention(
            module="attn",
            fused="attn.Wqkv",
            output="attn.Wo",
            norm="attn_norm",
            heads=Heads(size="head_dim", can_shrink=False, size_obstacle=ROTATED),
        ),
        feed_forward=(FeedForward(("mlp.Wi",), "mlp.Wo", "intermediate_size", fused_gate=True, norm=("mlp_norm",)),),
        # Only the first block reads the residual stream without a norm.
        depth=Depth(first_only="", input_norm="embeddings.norm"),
    ),
)
