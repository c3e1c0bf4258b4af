"""Encoders in GGUF files: their tensors, their pooling and their tokenizers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import normalizers

from laconic.errors import UserError
from laconic.export.gguf.encoders import pooling_type
from laconic.export.gguf.unigram import UNUSED_SCORE, unigram_values
from laconic.export.gguf.vocabulary import TokenType, read_vocabulary
from laconic.export.gguf.wordpiece import rename_pieces
from laconic.model import LanguageModel
from laconic.model.embedding import Files, Pipeline, TextSettings
from laconic.model.embedding_modules import Normalize, Pooling
from tests.export.gguf.encoders import ENCODERS, encoder, unigram, word_piece
from tests.export.gguf.models import CONTEXT, ROWS, exported

gguf: Any = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")


def pooled(lm: LanguageModel, *modes: str) -> LanguageModel:
    """The encoder with another pooling."""
    return replace(lm, pipeline=Pipeline([Pooling(modes), Normalize()], TextSettings(), Files()))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_file_has_the_encoder_and_its_pooling(name: str, tmp_path: Path) -> None:
    lm = pooled(encoder(name), "cls")
    reader = gguf.GGUFReader(exported(lm, tmp_path))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert (fields["general.architecture"], fields["bert.context_length"]) == ("bert", CONTEXT)
    assert (fields["bert.attention.causal"], fields["bert.pooling_type"]) == (False, 2)
    assert fields["tokenizer.ggml.token_type_count"] == 2
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    table = lm.model.embeddings.position_embeddings.weight.detach()
    assert torch.equal(torch.tensor(tensors["position_embd.weight"]), table[-CONTEXT:])
    assert "blk.2.layer_output_norm.bias" in tensors and not [key for key in tensors if "pool" in key]
    assert "llama-embedding -m model.gguf" in (tmp_path / "out" / "README.md").read_text()


def test_pieces_at_the_beginning_of_words_are_marked() -> None:
    found = read_vocabulary(word_piece(), ROWS)
    own = word_piece().get_vocab()
    assert found.model == "bert" and found.types[own["[CLS]"]] == TokenType.CONTROL
    assert found.tokens[own["[CLS]"]] == "[CLS]" and found.tokens[own["the"]] == "▁the"
    assert found.tokens[own["##a"]] == "a" == rename_pieces(["##a"], [False])[0]
    assert (found.values["ggml.bos_token_id"], found.values["ggml.seperator_token_id"]) == (own["[CLS]"], own["[SEP]"])
    assert found.values["ggml.normalizer.lowercase"] is found.values["ggml.normalizer.strip_accents"] is True
    assert read_vocabulary(word_piece(lowercase=False), ROWS).values["ggml.normalizer.strip_accents"] is False


def test_other_encoders_are_refused(tmp_path: Path) -> None:
    lm = encoder("bert")
    for modes in (("max",), ("mean", "cls")):
        with pytest.raises(UserError, match=r"holds mean, cls or last-token pooling, and the model has"):
            pooling_type(pooled(lm, *modes))
    classifier = hf.BertForSequenceClassification(lm.model.config)
    with pytest.raises(
        UserError, match=r"encoders without a head of the kinds bert, roberta, .*; BertForSequence.* is none"
    ):
        exported(LanguageModel.of(classifier, word_piece()), tmp_path)
    mpnet = hf.MPNetModel(hf.MPNetConfig(vocab_size=ROWS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UserError, match="MPNetModel is none"):
        exported(LanguageModel.of(mpnet, word_piece()), tmp_path)


def test_unigram_has_scores_and_the_map_of_characters() -> None:
    found = read_vocabulary(unigram(), ROWS)
    assert found.model == "t5" and found.types[3] == TokenType.UNKNOWN and found.scores[-1] == UNUSED_SCORE
    assert found.values["ggml.add_bos_token"] is found.values["ggml.remove_extra_whitespaces"] is True
    description = json.loads(unigram().backend_tokenizer.to_str())
    mapped = {**description, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAECAw=="}}
    assert unigram_values(mapped)["ggml.precompiled_charsmap"] == bytes([0, 1, 2, 3])
    with pytest.raises(UserError, match="or changes them before"):
        unigram_values({**description, "normalizer": {"type": "Lowercase"}})


def test_other_word_pieces_are_refused() -> None:
    tokenizer = word_piece.__wrapped__()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(handle_chinese_chars=False)
    with pytest.raises(UserError, match="cuts texts otherwise than BERT's"):
        read_vocabulary(tokenizer, ROWS)
