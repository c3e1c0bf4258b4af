"""Tiny random T5 models that a GGUF file is written of, with a Unigram tokenizer and its map of characters."""

import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from laconic.model import LanguageModel
from tests.export.gguf.models import ROWS, TEXTS, WIDTH

T5: dict[str, Any] = {
    "vocab_size": ROWS,
    "d_model": WIDTH,
    "d_kv": 32,
    "d_ff": 96,
    "num_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SPACES = "\n\t"
"""The characters that the map of characters makes spaces."""


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """The model with a head of its own, as T5 1.1 has it."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    head.weight = nn.Parameter(head.weight.detach().clone())
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5-gated": lambda: untied(hf.T5ForConditionalGeneration(hf.T5Config(**GATED))),
    "t5-short-decoder": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, num_decoder_layers=1)),
    "t5-buckets": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, relative_attention_num_buckets=12)),
    "mt5": lambda: untied(hf.MT5ForConditionalGeneration(hf.MT5Config(**GATED))),
    "umt5": lambda: hf.UMT5ForConditionalGeneration(hf.UMT5Config(**T5)),
}
ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": lambda: hf.T5EncoderModel(hf.T5Config(**T5)),
    "mt5": lambda: hf.MT5EncoderModel(hf.MT5Config(**GATED)),
    "umt5": lambda: hf.UMT5EncoderModel(hf.UMT5Config(**GATED)),
}


def with_numbers(built: PreTrainedModel) -> LanguageModel:
    """The model with a tokenizer. Its norms are not those of a new model, so that all of them count."""
    torch.manual_seed(0)
    for path, parameter in built.eval().named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if "relative" in path else 0.1)
        if parameter.dim() == 1:
            parameter.data += 0.8
    return LanguageModel.of(built, unigram())


def character_map() -> bytes:
    """A map from `SPACES` to spaces, as SentencePiece stores it: a double array of bytes, and the new texts.

    An entry has the byte that leads to it, a bit for a character that ends there, and from bit 10 on the distance to
    its successors.
    """
    root, leaf, ends = 256, 2, 1 << 8
    entries = [0] * 512
    entries[0] = root << 10
    for space in SPACES.encode():
        entries[root ^ space] = space | ends | leaf << 10
        # The text begins at byte 0.
        entries[root ^ space ^ leaf] = 1 << 31
    return struct.pack(f"<I{len(entries)}I", 4 * len(entries), *entries) + b" \0"


@cache
def unigram() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with the rules of T5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Precompiled(character_map())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=6
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    sentinels = [f"<extra_id_{index}>" for index in range(3)]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=sentinels,
    )


def encoder_decoder(name: str) -> LanguageModel:
    """The encoder-decoder of this name."""
    return with_numbers(MODELS[name]())


def t5_encoder(name: str) -> LanguageModel:
    """The encoder of this name."""
    return with_numbers(ENCODERS[name]())
