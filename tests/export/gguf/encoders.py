"""Tiny random encoders that a GGUF file is written of, with their tokenizers."""

from functools import cache
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from laconic.model import LanguageModel
from tests.export.gguf.models import CONTEXT, ROWS, SIZES, byte_level

TEXTS = ("the cat sat on the mat", " It's 1234 dogs,\n\n  and   rats!  ", "Größe 日本 ¿qué? UPPER café", "zzz ☃ the")
UNSEEN = 3
"""A token of the byte-level BPE that no text has."""
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


@cache
def word_piece(lowercase: bool = True) -> PreTrainedTokenizerFast:
    """A WordPiece with the rules of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=ROWS - 20, special_tokens=[*SPECIAL.values()], show_progress=False)
    tokenizer.train_from_iterator(TEXTS[:3] * 4, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@cache
def byte_level_between() -> PreTrainedTokenizerFast:
    """The byte-level BPE with its special tokens around a text, as RoBERTa has them."""
    tokenizer = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def unigram() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with the rules of XLM-RoBERTa."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=6
    )
    tokenizer.train_from_iterator(TEXTS[:3] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


ENCODERS = ("bert", "roberta", "xlm-roberta")


def encoder(name: str, **settings: Any) -> LanguageModel:
    """The encoder of this name, whose norms and biases are not those of a new model."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SIZES, **settings}
    if name == "bert":
        built = hf.BertModel(hf.BertConfig(**sizes)).eval()
    elif name == "xlm-roberta":
        sizes |= {"eos_token_id": 2, "max_position_embeddings": CONTEXT + 2}
        built = hf.XLMRobertaModel(hf.XLMRobertaConfig(**sizes)).eval()
    else:
        # A token of the texts that were the padding token would have no position.
        sizes |= {"pad_token_id": UNSEEN, "max_position_embeddings": CONTEXT + UNSEEN + 1}
        built = hf.RobertaModel(hf.RobertaConfig(**sizes)).eval()
    for path, parameter in built.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        if parameter.dim() == 1 and path.endswith("weight"):
            parameter.data += 0.8
    tokenizers = {"bert": word_piece, "roberta": byte_level_between, "xlm-roberta": unigram}
    return LanguageModel.of(built, tokenizers[name]())
