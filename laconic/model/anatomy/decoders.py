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
                norm="ln_1",
                heads=Heads(module="attn", count="num_heads", size="head_dim", width="split_size"),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.c_fc",), output="mlp.c_proj", config="n_inner", norm=("ln_2",), activation="mlp.act"
                ),
            ),
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
                norm="ln_1",
                heads=Heads(module="attn.attention", count="num_heads", size="head_dim"),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.c_fc",),
                    output="mlp.c_proj",
                    config="intermediate_size",
                    norm=("ln_2",),
                    activation="mlp.act",
                ),
            ),
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
            attention=Attention(
                fused="attention.query_key_value",
                fused_layout="by-head",
                output="attention.dense",
                norm="input_layernorm",
                heads=Heads(module="attention", size="head_size", shrinks=False),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.dense_h_to_4h",),
                    output="mlp.dense_4h_to_h",
                    config="intermediate_size",
                    norm=("post_attention_layernorm",),
                    activation="mlp.act",
                ),
            ),
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
                norm="self_attn_layer_norm",
                heads=Heads(module="self_attn", count="num_heads", size="head_dim"),
            ),
            feed_forward=(
                FeedForward(
                    inner=("fc1",),
                    output="fc2",
                    config="ffn_dim",
                    norm=("final_layer_norm",),
                    activation="activation_fn",
                ),
            ),
            before="do_layer_norm_before",
            # Where its norms come after the sublayers; else it is one inside.
            depth=Depth(closing="final_layer_norm"),
        ),
    ),
    embeddings=(Table("decoder.embed_tokens"),),
)

# Queries and keys are rotated, each head by itself; the groups that share keys and values go as a whole.
_ROTATED = Heads(
    module="self_attn",
    size="head_dim",
    shrinks=False,
    config="head_dim",
    config_count="num_attention_heads",
    config_keys="num_key_value_heads",
)

LLAMA = Anatomy(
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    stacks=(
        Stack(
            blocks="layers",
            attention=Attention(
                query="self_attn.q_proj",
                key="self_attn.k_proj",
                value="self_attn.v_proj",
                output="self_attn.o_proj",
                norm="input_layernorm",
                heads=_ROTATED,
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.gate_proj", "mlp.up_proj"),
                    output="mlp.down_proj",
                    config="intermediate_size",
                    width="mlp.intermediate_size",
                    # Gemma 2 and 3 have both, and the second of them elsewhere.
                    norm=("pre_feedforward_layernorm", "post_attention_layernorm"),
                ),
            ),
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
                query="self_attn.q_proj",
                key="self_attn.k_proj",
                value="self_attn.v_proj",
                output="self_attn.dense",
                norm="input_layernorm",
                heads=_ROTATED,
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.fc1",), output="mlp.fc2", config="intermediate_size", activation="mlp.activation_fn"
                ),
            ),
            parallel=True,
        ),
    ),
    embeddings=(Table("embed_tokens"),),
)
