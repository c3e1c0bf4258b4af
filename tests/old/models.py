"""The smallest models to store, one for each way in which a folder describes its content."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import AwqScale, Compress, Narrow, Shorten, ShrinkHeads, SmoothQuant, Step
from laconic.methods import Awq, Gptq, Int8, KMeans, Magnitude, Method, Plus, Rtn, Svd, Wanda
from laconic.model import LanguageModel

VOCABULARY, WIDTH, HEADS, INNER = 24, 16, 2, 24
ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": 12,
}
TOKENS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
WIDE: dict[str, Any] = {**ENCODER, **TOKENS, "hidden_size": 32, "intermediate_size": 32, "num_key_value_heads": 2}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": INNER,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
}


def bert(blocks: int) -> PreTrainedModel:
    """A BERT; its layers have biases."""
    sizes = {**ENCODER, "num_hidden_layers": blocks, "num_labels": 2}
    return hf.BertForSequenceClassification(hf.BertConfig(**sizes))


def bert_base(blocks: int) -> PreTrainedModel:
    """Without a head, and without a pooler of its own."""
    return hf.BertModel(hf.BertConfig(**ENCODER, num_hidden_layers=blocks), add_pooling_layer=False)


def gpt2(blocks: int) -> PreTrainedModel:
    """A GPT-2; its matrices are transposed, and its head is its embedding."""
    sizes = {"n_embd": WIDTH, "n_layer": blocks, "n_head": HEADS, "n_inner": INNER, "n_positions": 12}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, **sizes, **TOKENS))


def llama(blocks: int) -> PreTrainedModel:
    """A Llama; its layers have no biases."""
    sizes = {**ENCODER, "num_hidden_layers": blocks, "num_key_value_heads": 1, "head_dim": 8}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **TOKENS))


def t5(blocks: int) -> PreTrainedModel:
    """A T5: two stacks, with a table of relative positions."""
    return hf.T5ForConditionalGeneration(hf.T5Config(**T5, num_layers=blocks))


def t5_of_four_heads(blocks: int) -> PreTrainedModel:
    """A T5 with four heads, so that each stack can keep another number of them."""
    sizes = {**T5, "d_kv": 4, "num_heads": 4}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, num_layers=blocks))


def gemma2(blocks: int) -> PreTrainedModel:
    """A model whose blocks end with a norm without a bias."""
    sizes = {**ENCODER, "num_hidden_layers": blocks, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes, **TOKENS))


def mixtral(blocks: int) -> PreTrainedModel:
    """A model whose feed-forwards are four experts each."""
    sizes = {**ENCODER, "num_hidden_layers": blocks, "num_key_value_heads": 1, "head_dim": 8}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**sizes, **TOKENS, num_local_experts=4, num_experts_per_tok=2))


@dataclass(frozen=True)
class Case:
    """A folder: its name, the model that it is made of, and by which steps."""

    name: str
    build: Callable[[int], PreTrainedModel]
    steps: Sequence[Step]
    blocks: int = 1
    dtype: torch.dtype = torch.float32

    def lm(self) -> LanguageModel:
        """The model as it is before the steps, its numbers large enough that all of them show in what it computes."""
        torch.manual_seed(0)
        model = self.build(self.blocks).eval()
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                torch.nn.init.normal_(tensor, std=WIDTH**-0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(tensor, std=0.1)
        lm = LanguageModel.of(model)
        return lm if self.dtype is torch.float32 else lm.with_dtype(self.dtype)


def to(method: Method, *targets: str, **more: Any) -> Compress:
    """The step that compresses what `targets` name, or the blocks."""
    return Compress(method=method, **({"targets": targets} if targets else {}), **more)  # type: ignore[arg-type]


def wide_llama(blocks: int) -> PreTrainedModel:
    """A Llama whose matrices are wide enough for blocks of 32 columns."""
    return hf.LlamaForCausalLM(hf.LlamaConfig(**WIDE, num_hidden_layers=blocks))


def wide_mixtral(blocks: int) -> PreTrainedModel:
    """The same with four experts in place of a feed-forward."""
    sizes = {**WIDE, "num_hidden_layers": blocks}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2))


FOUR, HALF = Rtn(bits=4, group_size=8), Magnitude(sparsity=0.5)
LOW = Svd(rank=4)

CASES = (
    Case("low-rank", bert, [to(LOW)]),
    Case("low-rank-of-conv1d", gpt2, [to(LOW)]),
    Case("low-rank-in-float16", bert, [to(LOW)], dtype=torch.float16),
    Case("low-rank-in-bfloat16", llama, [to(LOW)], dtype=torch.bfloat16),
    Case("low-rank-shared", llama, [to(Svd(multiple=1), keep=0.6, share_inputs=True)]),
    Case("low-rank-embedding", bert, [to(LOW, "embedding")]),
    Case("low-rank-tied", gpt2, [to(LOW, "embedding", "head")]),
    Case("sparse", gpt2, [to(HALF)]),
    Case("sparse-two-of-four", bert, [to(Wanda(pattern="2:4"))]),
    Case("sparse-embedding", bert, [to(HALF, "embedding")]),
    Case("sparse-factors", bert, [to(LOW), to(HALF)]),
    Case("quantized", llama, [to(FOUR)]),
    Case("quantized-symmetric", bert, [to(Rtn(bits=3, group_size="channel", symmetric=True))]),
    Case("quantized-whole", t5, [to(Rtn(bits=8, group_size="tensor"))]),
    Case("quantized-with-column-scales", bert, [to(Awq(bits=4, group_size=8))]),
    Case("quantized-sparse", bert, [to(HALF), to(Gptq(bits=4, group_size=8))]),
    Case("quantized-factors", gpt2, [to(Svd(rank=8)), to(Rtn(bits=6, group_size=8))]),
    Case("codebook", bert, [to(KMeans(bits=3))]),
    Case("codebook-in-groups", llama, [to(KMeans(bits=2, group_size=16))]),
    Case("codebook-sparse", bert, [to(HALF), to(KMeans(bits=2, group_size="tensor"))]),
    Case("int8", bert, [to(Int8())]),
    Case("int8-sparse", gpt2, [to(HALF), to(Int8())]),
    Case("blocks-of-llama-cpp", wide_llama, [to(Gptq(grid="q4_1"), "attention"), to(Gptq(grid="q5_0"), "ffn")]),
    Case("experts-in-blocks", wide_mixtral, [to(Rtn(grid="q4_0"), "experts", allow_dense=True)]),
    Case("coded-embedding", bert, [to(FOUR, "embedding")]),
    Case("coded-embedding-of-int8", gpt2, [to(Int8(), "embedding", "head")]),
    Case("sum", bert, [to(Plus(base=Rtn(bits=3, group_size=8), residual=Svd(rank=2)))]),
    Case("sum-of-sparse", llama, [to(Plus(base=HALF, residual=Svd(rank=2), factor_bits=None))]),
    Case(
        "experts",
        mixtral,
        [
            to(LOW, "*layers.0*experts.gate_up_proj*", allow_dense=True),
            to(FOUR, "*layers.0*experts.down_proj*", allow_dense=True),
            to(KMeans(bits=3), "*layers.1*experts.gate_up_proj*", allow_dense=True),
            to(HALF, "*layers.1*experts.down_proj*", allow_dense=True),
            to(Int8(), "*layers.2*experts.gate_up_proj*", allow_dense=True),
            to(Plus(base=FOUR, residual=Svd(rank=2)), "*layers.2*experts.down_proj*", allow_dense=True),
        ],
        blocks=3,
    ),
    Case("dense-with-bias", t5, [Narrow(heads=0.5, channels=0.5, add_bias=True)]),
    Case("constant", bert, [Shorten(blocks=("0.attention",))], blocks=2),
    Case("constant-between", llama, [Shorten(blocks=("0.ffn",))], blocks=2),
    Case("mapped", bert, [Shorten(drop=1, select="last", replace="linear")], blocks=2),
    Case("mapped-by-a-bias", gemma2, [Shorten(blocks=(1,), replace="bias")], blocks=2),
    Case("resized", bert, [Narrow(keep=0.6, multiple=1)], blocks=2),
    Case("resized-positions", t5_of_four_heads, [Narrow(keep=0.5, multiple=1)]),
    Case("smaller-heads", bert, [ShrinkHeads(size=5)]),
    Case("smaller-heads-of-gpt2", gpt2, [ShrinkHeads(size=5)]),
    Case("stock-narrow", bert, [Narrow(channels=0.5)]),
    Case("stock-short", llama, [Shorten(drop=1, select="last")], blocks=2),
    Case("stock-scaled", bert, [AwqScale(group_size=8)]),
    Case("stock-smoothed", llama, [SmoothQuant()]),
)


def batch_for(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows of six tokens, the second padded by two; with target tokens for an encoder-decoder."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, VOCABULARY, (2, 6), generator=generator),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    }
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 4), generator=generator)
    return batch


def data_for(lm: LanguageModel) -> Calibration:
    """The calibration data of the steps."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(4):
        batch = {
            "input_ids": torch.randint(3, VOCABULARY, (4, 8), generator=generator),
            "attention_mask": torch.tensor([[1] * 8] * 3 + [[1] * 5 + [0] * 3]),
        }
        if lm.task.value == "seq2seq":
            batch["labels"] = torch.randint(3, VOCABULARY, (4, 5), generator=generator)
        batches.append(batch)
    return Calibration(batches)
