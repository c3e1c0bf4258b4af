"""The table of the architectures of llama.cpp, with the model types of transformers that are written as each of them.

The names of tensors come from the package `gguf`. A table entry has what the graph of llama.cpp takes for granted: the
order of rows, the kind of norm, the activation, and which widths and heads it can read.

Source: the files of `src/models` in llama.cpp (release v0.4.0), and its `convert_hf_to_gguf.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from laconic.model import ModelTask


class RowOrder(Enum):
    """An order of the rows of a matrix in the file that differs from that in transformers."""

    PAIRS = "pairs"
    """The interleaved rows of rotary positions: llama.cpp rotates neighbouring rows of a head, transformers row i with
    row i + half of the head."""
    QUERIES_KEYS_VALUES = "queries, keys, values"
    """All queries, then all keys, then all values; in transformers those of each group of heads lie together."""


SILU = ("silu", "swish")
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""llama.cpp computes every GELU by the tanh formula, from a table of 16-bit numbers."""


@dataclass(frozen=True)
class FileBlocks:
    """The names of the blocks of one stack in the file.

    Args:
        prefix: the part before the number of the block.
        count_key: the key of the configuration for the number of blocks.
        attentions: the attentions of a block.
        output: the output projection of an attention.
    """

    prefix: str = "blk"
    count_key: str = "num_hidden_layers"
    attentions: tuple[str, ...] = ("attn",)
    output: str = "output"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of llama.cpp.

    Args:
        name: the value of `general.architecture`.
        model_type: the `model_type` of transformers.
        task: what the model predicts; of an encoder (`EMBEDDING`), the file gives a vector for each text.
        stacks: the blocks of each stack.
        activations: the activations, as the configuration names them, that its graph computes.
        rms_norm: whether its norms have no mean; otherwise they are layer norms.
        norm_offset: what transformers adds to the weights of norms, and llama.cpp does not.
        rows: the order of rows, by the name of the tensor without `blk.N.`.
        values: further metadata: the key without the architecture, and the key of the configuration.
        required: values of the configuration that the graph takes for granted, by key.
        head_is_required: whether a tied head is written a second time.
        head_is_tied: whether the graph reads the word embeddings as the head.
        square: whether all heads together must be as wide as the model.
        grouped: whether several heads of queries may read the same keys.
        rotary: the kinds of rotary scaling that its graph computes.
        windows: whether the graph has sliding windows; otherwise the context ends where the window does.
        narrowed: the architecture that takes other numbers of heads and channels in each block; None if there is none.
        readable: whether transformers reads such a file.
        skips_padding: whether positions are counted from the one after the number of the padding token.
        output_scale: the key of the configuration by which transformers divides what the head reads by the root of its
            width; llama.cpp never does.
    """

    name: str
    model_type: str
    task: ModelTask = ModelTask.CAUSAL
    stacks: tuple[FileBlocks, ...] = (FileBlocks(),)
    activations: tuple[str, ...] = SILU
    rms_norm: bool = True
    norm_offset: float = 0.0
    rows: Mapping[str, RowOrder] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    head_is_required: bool = False
    head_is_tied: bool = False
    square: bool = True
    grouped: bool = True
    rotary: tuple[str, ...] = ("default", "linear", "yarn")
    windows: bool = False
    narrowed: "Architecture | None" = None
    readable: bool = True
    skips_padding: bool = False
    output_scale: str | None = None

    @property
    def embeds(self) -> bool:
        """Whether it is an encoder, of which the file gives a vector for each text."""
        return self.task is ModelTask.EMBEDDING


_BERT = {"is_decoder": (False, None), "add_cross_attention": (False, None)}
_LLAMA_ROTARY = ("default", "linear", "llama3", "yarn", "longrope")
_PAIRS = {"attn_q": RowOrder.PAIRS, "attn_k": RowOrder.PAIRS}
_GROUPED = {"attn_qkv": RowOrder.QUERIES_KEYS_VALUES}
_EXPERTS = {"expert_used_count": "num_experts_per_tok"}
_T5_ENCODER = FileBlocks("enc.blk", "num_layers", output="o")
_T5_DECODER = FileBlocks("dec.blk", "num_decoder_layers", ("attn", "cross_attn"), output="o")
_T5_ACTIVATIONS = ("relu", *GELU[1:])
# transformers reads the first key, and llama.cpp the epsilon of norms without a mean.
_T5_VALUES = {
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.relative_buckets_count": "relative_attention_num_buckets",
}
# llama.cpp takes ReLU without a gate and GELU with one.
_T5_REQUIRED = {
    "feed_forward_proj": ("relu", "gated-gelu", *(f"gated-{name}" for name in GELU[1:])),
    "relative_attention_max_distance": (128,),
}
_T5_OUTPUT_SCALES = {"t5": "scale_decoder_outputs", "mt5": None, "umt5": "tie_word_embeddings"}
_GEMMA = {"final_logit_softcapping": "final_logit_softcapping"}

DECI = Architecture(name="deci", model_type="llama", rows=_PAIRS, square=False, rotary=_LLAMA_ROTARY, readable=False)
"""Llama with other numbers of heads and channels in each block, and biases where there are some."""

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(name="llama", model_type="llama", rows=_PAIRS, square=False, rotary=_LLAMA_ROTARY, narrowed=DECI),
    Architecture(name="llama", model_type="mistral", rows=_PAIRS, square=False, rotary=_LLAMA_ROTARY, narrowed=DECI),
    Architecture(name="llama", model_type="mixtral", rows=_PAIRS, square=False, values=_EXPERTS, readable=False),
    # Qwen2 is Llama with biases, so the same architecture takes what does not fit its own.
    Architecture(name="qwen2", model_type="qwen2", narrowed=DECI),
    Architecture(name="qwen3", model_type="qwen3", square=False),
    Architecture(
        name="olmoe",
        model_type="olmoe",
        values=_EXPERTS,
        required={"norm_topk_prob": (False,), "clip_qkv": (None,), "attention_bias": (False,)},
        head_is_required=True,
        grouped=False,
        readable=False,
    ),
    Architecture(
        name="qwen2moe",
        model_type="qwen2_moe",
        values=_EXPERTS,
        required={"norm_topk_prob": (False,), "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        head_is_required=True,
        readable=False,
    ),
    Architecture(
        name="qwen3moe",
        model_type="qwen3_moe",
        values=_EXPERTS,
        required={"norm_topk_prob": (True,), "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        square=False,
        readable=False,
    ),
    Architecture(
        name="gemma2",
        model_type="gemma2",
        activations=GELU[1:],
        norm_offset=1.0,
        values={**_GEMMA, "attn_logit_softcapping": "attn_logit_softcapping"},
        required={"attention_bias": (False,)},
        head_is_tied=True,
        square=False,
        windows=True,
        # transformers does not read the scale of queries.
        readable=False,
    ),
    Architecture(
        name="gemma3",
        model_type="gemma3_text",
        activations=GELU[1:],
        norm_offset=1.0,
        values=_GEMMA,
        required={
            "attention_bias": (False,),
            "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": (False,),
        },
        square=False,
        rotary=("default", "linear"),
        windows=True,
        readable=False,
    ),
    Architecture(name="phi3", model_type="phi3", rotary=("default", "linear", "yarn", "longrope")),
    Architecture(
        name="gpt2",
        model_type="gpt2",
        activations=GELU,
        rms_norm=False,
        required={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
    ),
    Architecture(
        name="gptneox",
        model_type="gpt_neox",
        activations=GELU,
        rms_norm=False,
        rows=_GROUPED,
        values={"use_parallel_residual": "use_parallel_residual"},
        required={"attention_bias": (True,)},
        head_is_required=True,
        readable=False,
    ),
    Architecture(
        name="starcoder2",
        model_type="starcoder2",
        activations=GELU,
        rms_norm=False,
        required={"use_bias": (True,)},
    ),
    Architecture(
        name="olmo2", model_type="olmo2", required={"attention_bias": (False,)}, head_is_required=True, readable=False
    ),
    Architecture(
        name="falcon",
        model_type="falcon",
        activations=GELU,
        rms_norm=False,
        rows=_GROUPED,
        required={"bias": (False,), "alibi": (False,), "parallel_attn": (True,)},
        readable=False,
    ),
    Architecture(
        name="bert",
        model_type="bert",
        activations=GELU,
        rms_norm=False,
        required=_BERT,
        readable=False,
        task=ModelTask.EMBEDDING,
    ),
    *(
        Architecture(
            name="bert",
            model_type=model_type,
            activations=GELU,
            rms_norm=False,
            required=_BERT,
            readable=False,
            task=ModelTask.EMBEDDING,
            skips_padding=True,
        )
        for model_type in ("roberta", "xlm-roberta")
    ),
    *(
        Architecture(
            name="t5",
            model_type=model_type,
            task=ModelTask.SEQ2SEQ,
            stacks=(_T5_ENCODER, _T5_DECODER),
            activations=_T5_ACTIVATIONS,
            values={
                **_T5_VALUES,
                "decoder_block_count": "num_decoder_layers",
                "decoder_start_token_id": "decoder_start_token_id",
            },
            required=_T5_REQUIRED,
            square=False,
            # transformers reads a table of positions for the first block only.
            readable=model_type != "umt5",
            output_scale=output_scale,
        )
        for model_type, output_scale in _T5_OUTPUT_SCALES.items()
    ),
    *(
        Architecture(
            name="t5encoder",
            model_type=model_type,
            task=ModelTask.EMBEDDING,
            stacks=(_T5_ENCODER,),
            activations=_T5_ACTIVATIONS,
            values=_T5_VALUES,
            required=_T5_REQUIRED,
            square=False,
            readable=False,
        )
        for model_type in _T5_OUTPUT_SCALES
    ),
)
"""Every architecture that can be written, in the order in which errors list them."""
