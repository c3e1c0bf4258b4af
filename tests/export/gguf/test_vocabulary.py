"""The tokenizer of a GGUF file is that of the model, or refused."""

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from laconic.errors import UserError
from laconic.export.gguf.pretokenizers import find_name
from laconic.export.gguf.rows import RowOrder, file_rows
from laconic.export.gguf.vocabulary import TokenType, merge_scores, read_vocabulary
from tests.export.gguf.models import ROWS, byte_level, sentence_piece
from tests.tokens import letters


def test_bytes_with_merges() -> None:
    found = read_vocabulary(byte_level(), ROWS)
    assert (found.model, found.values["ggml.pre"], found.values["ggml.add_bos_token"]) == ("gpt2", "gpt-2", False)
    assert found.tokens[:2] == ["<s>", "</s>"] and found.types[0] == TokenType.CONTROL
    assert found.tokens[-1] == f"[PAD{ROWS - 1}]" and found.types[-1] == TokenType.UNUSED
    assert "t he" in found.merges and not found.scores


def test_pieces_with_scores() -> None:
    found = read_vocabulary(sentence_piece(), ROWS)
    assert found.model == "llama" and found.values["ggml.add_space_prefix"] is True
    assert found.types[found.tokens.index("<0x41>")] == TokenType.BYTE and found.types[0] == TokenType.UNKNOWN
    merged = [score for score in found.scores if score < 0]
    assert len(merged) > 5 and merged == sorted(merged, reverse=True)


def test_an_order_that_scores_cannot_give_is_refused() -> None:
    with pytest.raises(UserError, match="in an order that no scores of tokens give"):
        merge_scores([("a", "bc"), ("b", "c"), ("ab", "c")], ["a", "b", "c", "bc", "ab", "abc"])


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(
        UserError, match="holds a BPE, WordPiece or Unigram tokenizer, and that of the model is a WordLevel"
    ):
        read_vocabulary(letters(), ROWS)
    with pytest.raises(UserError, match=r"3\d\d tokens and the model 300 word embeddings"):
        read_vocabulary(byte_level(), 300)
    with pytest.raises(UserError, match=r"cuts texts by rules that no pre-tokenizer of llama.cpp"):
        read_vocabulary(byte_level(pre_tokenizers.Split(Regex("a+"), "isolated")), ROWS)
    lower = byte_level(pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="changes texts by 'Lowercase'"):
        read_vocabulary(lower, ROWS)


def test_merges_that_are_ignored_have_another_name() -> None:
    digits = {"type": "Digits", "individual_digits": True}
    with pytest.raises(UserError, match="rules"):
        find_name(digits, ignore_merges=False)


def test_rows_are_taken_once() -> None:
    for order in RowOrder:
        rows = file_rows(order, heads=4, groups=2, size=6)
        assert sorted(rows.tolist()) == list(range(len(rows)))
