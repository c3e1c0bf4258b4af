"""Entries of the decoders."""

from laconic.model.anatomy.parts import Anatomy, Attention, Depth, FeedForward, Heads, Stack, WordEmbedding, separate

GPT2 = Anatomy(
    model_types=("gpt2",),
    stacks=(
        Stack(
            blocks="h",
            attention=Attention(
                module="attn",
                fused="attn.c_attn",
                output="attn.c_proj",
                norm="ln_1",
                heads=Heads(count="num_heads", size="head_dim", width="split_size"),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.c_fc",),
                    output="mlp.c_proj",
                    config_width="n_inner",
                    norm=("ln_2",),
                    activation="mlp.act",
                ),
            ),
            depth=Depth(score_scale_flag="scale_attn_by_inverse_layer_idx"),
        ),
    ),
    embeddings=(WordEmbedding("wte"),),
)

GPT_NEO = Anatomy(
    model_types=("gpt_neo",),
    stacks=(
        Stack(
            blocks="h",
            attention=separate(
                "attn.attention",
                "q_proj k_proj v_proj",
                "attn.attention.out_proj",
                norm="ln_1",
                heads=Heads(count="num_heads", size="head_dim"),
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.c_fc",),
                    output="mlp.c_proj",
                    config_width="intermediate_size",
                    norm=("ln_2",),
                    activation="mlp.act",
                ),
            ),
            depth=Depth(lists=("attention_layers",), repeated_list="attention_types"),
        ),
    ),
    embeddings=(WordEmbedding("wte"),),
)

# Attention and feed-forward may run in parallel, but each has a norm of its own.
GPT_NEOX = Anatomy(
    model_types=("gpt_neox",),
    stacks=(
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
                    inner=("mlp.dense_h_to_4h",),
                    output="mlp.dense_4h_to_h",
                    config_width="intermediate_size",
                    norm=("post_attention_layernorm",),
                    activation="mlp.act",
                ),
            ),
        ),
    ),
    embeddings=(WordEmbedding("embed_in"),),
)

OPT = Anatomy(
    model_types=("opt",),
    stacks=(
        Stack(
            blocks="decoder.layers",
            attention=separate(
                "self_attn",
                "q_proj k_proj v_proj",
                "self_attn.out_proj",
                norm="self_attn_layer_norm",
                heads=Heads(count="num_heads", size="head_dim"),
            ),
            feed_forward=(
                FeedForward(
                    inner=("fc1",),
                    output="fc2",
                    config_width="ffn_dim",
                    norm=("final_layer_norm",),
                    activation="activation_fn",
                ),
            ),
            pre_norm_flag="do_layer_norm_before",
            # Only in post-norm models; in pre-norm models this norm is inside the block.
            depth=Depth(last_norm="final_layer_norm"),
        ),
    ),
    embeddings=(WordEmbedding("decoder.embed_tokens"),),
)

# Rotary positions rotate each head on its own. Heads that share keys and values are removed together.
_ROTARY = Heads(
    size="head_dim",
    can_shrink=False,
    config_size="head_dim",
    config_count="num_attention_heads",
    config_kv_count="num_key_value_heads",
)

LLAMA = Anatomy(
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    stacks=(
        Stack(
            blocks="layers",
            attention=separate(
                "self_attn", "q_proj k_proj v_proj", "self_attn.o_proj", norm="input_layernorm", heads=_ROTARY
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.gate_proj", "mlp.up_proj"),
                    output="mlp.down_proj",
                    config_width="intermediate_size",
                    width="mlp.intermediate_size",
                    # Gemma 2 and 3 have both, and the second one after the attention.
                    norm=("pre_feedforward_layernorm", "post_attention_layernorm"),
                ),
            ),
            # Gemma 2 and 3; the second is missing elsewhere.
            depth=Depth(output_norms=("post_attention_layernorm", "post_feedforward_layernorm")),
        ),
    ),
    embeddings=(WordEmbedding("embed_tokens"),),
)

PHI = Anatomy(
    model_types=("phi",),
    stacks=(
        Stack(
            blocks="layers",
            attention=separate(
                "self_attn", "q_proj k_proj v_proj", "self_attn.dense", norm="input_layernorm", heads=_ROTARY
            ),
            feed_forward=(
                FeedForward(
                    inner=("mlp.fc1",),
                    output="mlp.fc2",
                    config_width="intermediate_size",
                    activation="mlp.activation_fn",
                ),
            ),
            parallel=True,
        ),
    ),
    embeddings=(WordEmbedding("embed_tokens"),),
)
