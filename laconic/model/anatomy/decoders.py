"""Where the linears of the decoders are."""

from laconic.model.anatomy.parts import Anatomy, Attention, Depth, FeedForward, Heads, Stack, Table

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
            depth=Depth(scaled="scale_attn_by_inverse_layer_idx"),
        ),
    ),
    embeddings=(Table("wte"),),
)

GPT_NEO = Anatomy(
    model_types=("gpt_neo",),
    stacks=(
        Stack(
            blocks="h",
            attention=Attention(
                query="attn.attention.q_proj",
                key="attn.attention.k_proj",
                value="attn.attention.v_proj",
                output="attn.attention.out_proj",
                heads=Heads(module="attn.attention", count="num_heads", size="head_dim"),
            ),
            feed_forward=(FeedForward(inner=("mlp.c_fc",), output="mlp.c_proj"),),
            depth=Depth(lists=("attention_layers",), repeated="attention_types"),
        ),
    ),
    embeddings=(Table("wte"),),
)

# Its attention and its feed-forward may run in parallel, but read the block through norms of their own.
GPT_NEOX = Anatomy(
    model_types=("gpt_neox",),
    stacks=(
        Stack(
            blocks="layers",
            attention=Attention(fused="attention.query_key_value", fused_layout="by-head", output="attention.dense"),
            feed_forward=(FeedForward(inner=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h"),),
        ),
    ),
    embeddings=(Table("embed_in"),),
)

OPT = Anatomy(
    model_types=("opt",),
    stacks=(
        Stack(
            blocks="decoder.layers",
            attention=Attention(
                query="self_attn.q_proj",
                key="self_attn.k_proj",
                value="self_attn.v_proj",
                output="self_attn.out_proj",
                heads=Heads(module="self_attn", count="num_heads", size="head_dim"),
            ),
            feed_forward=(FeedForward(inner=("fc1",), output="fc2"),),
            # Where its norms come after the sublayers; else it is one inside.
            depth=Depth(closing="final_layer_norm"),
        ),
    ),
    embeddings=(Table("decoder.embed_tokens"),),
)

LLAMA = Anatomy(
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    stacks=(
        Stack(
            blocks="layers",
            attention=Attention(
                query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj", output="self_attn.o_proj"
            ),
            feed_forward=(FeedForward(inner=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"),),
            # Gemma 2 and 3; elsewhere the second is missing.
            depth=Depth(outer=("post_attention_layernorm", "post_feedforward_layernorm")),
        ),
    ),
    embeddings=(Table("embed_tokens"),),
)

PHI = Anatomy(
    model_types=("phi",),
    stacks=(
        Stack(
            blocks="layers",
            attention=Attention(
                query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj", output="self_attn.dense"
            ),
            feed_forward=(FeedForward(inner=("mlp.fc1",), output="mlp.fc2"),),
            parallel=True,
        ),
    ),
    embeddings=(Table("embed_tokens"),),
)
