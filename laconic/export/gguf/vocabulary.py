"""The tokenizer of a GGUF file: byte-level BPE with merges, SentencePiece with scores and bytes, or WordPiece."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from laconic.errors import UserError
from laconic.export.gguf.pretokenizers import find_name
from laconic.export.gguf.unigram import piece_scores, unigram_values
from laconic.export.gguf.wordpiece import rename_pieces, wordpiece_values

Value = int | bool | str | bytes
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenType(IntEnum):
    """The types of tokens in llama.cpp."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer as a GGUF file has it.

    Args:
        model: `gpt2` for byte-level BPE, `llama` for BPE of SentencePiece, `t5` for Unigram, `bert` for WordPiece.
        tokens: all tokens, in the order of their numbers.
        types: the type of each token.
        merges: the merges of byte-level BPE, each two tokens with a space between them.
        scores: the scores of SentencePiece; pairs of higher ones are merged first, and those of Unigram are added.
        values: further metadata, by key without `tokenizer.`.
    """

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    values: Mapping[str, Value]


def read_vocabulary(tokenizer: PreTrainedTokenizerBase | None, size: int) -> Vocabulary:
    """The tokenizer of a model.

    Args:
        tokenizer: the tokenizer, or None.
        size: rows of the word embeddings; tokens that the tokenizer lacks become unused ones.

    Raises:
        UserError: there is none, or llama.cpp has no such tokenizer.
    """
    fast, description = _describe(tokenizer, size)
    model = description["model"]
    tokens, types = _tokens(description, size)
    if model["type"] == "WordPiece":
        values = wordpiece_values(fast, description)
        tokens = rename_pieces(tokens, [kind == TokenType.CONTROL for kind in types])
        return Vocabulary(model="bert", tokens=tokens, types=types, values=values)
    values = _added_around(fast) | _special_numbers(fast)
    if model["type"] == "Unigram":
        types[model["unk_id"]] = TokenType.UNKNOWN
        values |= unigram_values(description)
        return Vocabulary(model="t5", tokens=tokens, types=types, scores=piece_scores(description, size), values=values)
    if isinstance(fast.chat_template, str):
        values["chat_template"] = fast.chat_template
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if not model["byte_fallback"]:
        values["ggml.pre"] = find_name(description["pre_tokenizer"], model["ignore_merges"])
        _check_normalizer(description["normalizer"])
        merges = [" ".join(pair) for pair in pairs]
        return Vocabulary(model="gpt2", tokens=tokens, types=types, merges=merges, values=values)
    types = [TokenType.BYTE if BYTE.fullmatch(token) else kind for token, kind in zip(tokens, types, strict=True)]
    if isinstance(unknown := fast.unk_token_id, int):
        types[unknown] = TokenType.UNKNOWN
    values |= {"ggml.pre": "default", "ggml.add_space_prefix": _adds_space(description)}
    return Vocabulary(model="llama", tokens=tokens, types=types, scores=merge_scores(pairs, tokens), values=values)


def _describe(
    tokenizer: PreTrainedTokenizerBase | None, size: int
) -> tuple[PreTrainedTokenizerFast, Mapping[str, Any]]:
    """The tokenizer and its tokenizer.json, after a check of its kind, and that it has at most `size` tokens."""
    if tokenizer is None:
        raise UserError(
            "A GGUF file holds the tokenizer, and the model has none; pass one, or save it beside the model."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"A GGUF file is written from tokenizer.json, which {type(tokenizer).__name__} does not have; use the fast "
            "tokenizer of the model."
        )
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    if (kind := description["model"]["type"]) not in ("BPE", "WordPiece", "Unigram"):
        raise UserError(
            f"A GGUF file holds a BPE, WordPiece or Unigram tokenizer, and that of the model is a {kind}; export it to "
            "onnx or openvino."
        )
    if len(tokenizer) > size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {size} word embeddings; use the tokenizer that "
            "belongs to the model."
        )
    return tokenizer, description


def _tokens(description: Mapping[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    """The tokens in the order of their numbers, and their types."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [TokenType.UNUSED] * size
    vocabulary = description["model"]["vocab"]
    numbers = vocabulary if isinstance(vocabulary, dict) else {piece: k for k, (piece, _) in enumerate(vocabulary)}
    for token, index in numbers.items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for added in description["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return tokens, types


def merge_scores(pairs: Sequence[tuple[str, ...]], tokens: Sequence[str]) -> list[float]:
    """Scores that make llama.cpp merge in the order of a list of merges.

    llama.cpp merges any two neighbours that together are a token, the token of the highest score first.

    Args:
        pairs: the merges, the first one first.
        tokens: all tokens.

    Raises:
        UserError: the order is not one of tokens.

    Example:
        >>> merge_scores([("a", "b"), ("ab", "c"), ("a", "bc")], ["a", "b", "c", "bc", "ab", "abc"])
        [0.0, 0.0, 0.0, 0.0, -1.0, -2.0]
    """
    ranks: dict[str, int] = {}
    for left, right in pairs:
        ranks.setdefault(left + right, len(ranks) + 1)
    order = [ranks[left + right] for left, right in pairs]
    if order != sorted(order):
        raise UserError(
            "The merges of the tokenizer are in an order that no scores of tokens give, as a GGUF file has them; "
            "export the model to onnx or openvino."
        )
    return [float(-ranks.get(token, 0)) for token in tokens]


def _special_numbers(tokenizer: PreTrainedTokenizerBase) -> dict[str, Value]:
    """The numbers of the special tokens, for llama.cpp's names."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    numbers = {name: getattr(tokenizer, f"{own}_token_id") for own, name in names.items()}
    return {f"ggml.{name}_token_id": number for name, number in numbers.items() if number is not None}


def _added_around(tokenizer: PreTrainedTokenizerBase) -> dict[str, Value]:
    """The special tokens at the start and the end of a text.

    Raises:
        UserError: they are not those of its beginning and end.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begins = len(whole) > len(plain) and whole[0] == tokenizer.bos_token_id
    ends = len(whole) > len(plain) + begins and whole[-1] == tokenizer.eos_token_id
    if whole != [tokenizer.bos_token_id] * begins + plain + [tokenizer.eos_token_id] * ends:
        raise UserError(
            f"The tokenizer puts other tokens around a text than '{tokenizer.bos_token}' and '{tokenizer.eos_token}', "
            "which a GGUF file cannot say; export the model to onnx or openvino."
        )
    return {"ggml.add_bos_token": bool(begins), "ggml.add_eos_token": bool(ends)}


def _check_normalizer(normalizer: Mapping[str, Any] | None) -> None:
    """llama.cpp takes texts as they are; texts in NFC, as nearly all are, stay the same."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if other := [step["type"] for step in steps if step["type"] != "NFC"]:
        raise UserError(
            f"The tokenizer changes texts by '{other[0]}' before it cuts them, which llama.cpp does not; export the "
            "model to onnx or openvino."
        )


def _adds_space(description: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    steps = []
    for part, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        entry = description[part]
        steps += [] if entry is None else entry.get(inner, [entry])
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step["prepend_scheme"] != "never")
        for step in steps
    )
