"""Every architecture that laconic knows, as a tiny random model with a batch it can run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from laconic.formats import LowRank
from laconic.model import LanguageModel, Site

VOCABULARY, WIDTH, HEADS, INNER, BLOCKS = 50, 32, 4, 48, 2

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": 40,
}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": WIDTH,
    "n_layers": BLOCKS,
    "n_heads": HEADS,
    "hidden_dim": INNER,
    "max_position_embeddings": 40,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": BLOCKS,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_positions": 40,
}
DECODER = {**ENCODER, "num_key_value_heads": 2, "head_dim": 8}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": INNER,
    "num_layers": BLOCKS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": BLOCKS,
    "decoder_layers": BLOCKS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "max_position_embeddings": 40,
}
# Token numbers of the smallest vocabularies; the defaults lie beyond it.
SMALL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


@dataclass(frozen=True)
class Architecture:
    """A name, the model's class and the configuration that keeps it tiny."""

    name: str
    build: Callable[[], PreTrainedModel]

    def model(self, seed: int = 0) -> PreTrainedModel:
        """The model with random weights, large enough that every one of them shows in the outputs."""
        torch.manual_seed(seed)
        model = self.build().eval()
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                torch.nn.init.normal_(tensor, std=WIDTH**-0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(tensor, std=0.1)
        return model

    def lm(self, seed: int = 0) -> LanguageModel:
        return LanguageModel.of(self.model(seed))


def _bert(**extra: object) -> BertConfig:
    return BertConfig(**ENCODER, **extra)


ARCHITECTURES = (
    Architecture("bert-classifier", lambda: BertForSequenceClassification(_bert(num_labels=3))),
    Architecture("bert-masked", lambda: BertForMaskedLM(_bert())),
    Architecture("bert-masked-untied", lambda: BertForMaskedLM(_bert(tie_word_embeddings=False))),
    Architecture("bert-base", lambda: BertModel(_bert())),
    Architecture("roberta-masked", lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER, **SMALL))),
    Architecture("distilbert-masked", lambda: DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT))),
    Architecture(
        "distilbert-classifier",
        lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT, num_labels=1)),
    ),
    Architecture("gpt2", lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **SMALL))),
    Architecture("gpt2-untied", lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **SMALL, tie_word_embeddings=False))),
    Architecture("llama", lambda: LlamaForCausalLM(LlamaConfig(**DECODER, **SMALL))),
    Architecture("llama-tied", lambda: LlamaForCausalLM(LlamaConfig(**DECODER, **SMALL, tie_word_embeddings=True))),
    Architecture("mistral", lambda: MistralForCausalLM(MistralConfig(**DECODER, **SMALL))),
    Architecture("qwen2", lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER, **SMALL, tie_word_embeddings=True))),
    Architecture("qwen3", lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, **SMALL, tie_word_embeddings=True))),
    Architecture("t5", lambda: T5ForConditionalGeneration(T5Config(**T5))),
    Architecture(
        "t5-gated",
        lambda: T5ForConditionalGeneration(T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    ),
    Architecture("bart", lambda: BartForConditionalGeneration(BartConfig(**BART, **SMALL))),
    Architecture(
        "bart-untied", lambda: BartForConditionalGeneration(BartConfig(**BART, **SMALL, tie_word_embeddings=False))
    ),
    Architecture(
        "bart-scaled", lambda: BartForConditionalGeneration(BartConfig(**BART, **SMALL, scale_embedding=True))
    ),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def batch_for(model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    """Two rows of seven tokens, the second one padded by two; with target tokens for an encoder-decoder."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "input_ids": torch.randint(3, VOCABULARY, (2, 7), generator=generator),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
    }
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 5), generator=generator)
    return batch


@torch.no_grad()
def outputs(model: PreTrainedModel, seed: int = 0) -> Tensor:
    """The logits of the batch, or the last hidden states of a base model."""
    return model(**batch_for(model, seed))[0]


def factors(site: Site, rank: int | None = None) -> LowRank:
    """The truncated SVD of a site's matrix; of full rank by default."""
    U, S, Vh = torch.linalg.svd(site.weight().double(), full_matrices=False)
    rank = len(S) if rank is None else rank
    A, B = U[:, :rank] * S[:rank], Vh[:rank]
    return LowRank.of(A.to(site.weight().dtype), B.to(site.weight().dtype))


def compress_everything(lm: LanguageModel, rank: int | None = None) -> LanguageModel:
    """Replace every site, heads and embeddings included."""
    for site in lm.sites(("*",)):
        lm.replace(site, factors(site, rank))
    return lm
