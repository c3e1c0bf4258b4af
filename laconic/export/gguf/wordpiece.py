"""The WordPiece tokenizer of BERT in a GGUF file.

llama.cpp cuts a text as BERT's own normalizer and pre-tokenizer do, and then takes the longest token at each place of a
word. It has "▁" before the tokens that begin a word, where WordPiece has "##" before those that do not.

Source: `llm_tokenizer_wpm_session` of src/llama-vocab.cpp in llama.cpp (release v0.4.0).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from laconic.errors import UserError

INSIDE, BEGINNING = "##", "▁"
NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
"""The normalizer that llama.cpp assumes; lower case and accents are options."""
_NAMES = {"cls": "bos", "sep": "seperator", "unk": "unknown", "pad": "padding", "mask": "mask"}
"""The special tokens by llama.cpp's names, which are spelled so."""


def rename_pieces(tokens: Sequence[str], special: Sequence[bool]) -> list[str]:
    """The tokens as llama.cpp has them.

    Args:
        tokens: the tokens.
        special: whether each is a special token, which stays as it is.

    Example:
        >>> rename_pieces(["[CLS]", "word", "##s"], [True, False, False])
        ['[CLS]', '▁word', 's']
    """
    return [
        token if kept else token.removeprefix(INSIDE) if token.startswith(INSIDE) else f"{BEGINNING}{token}"
        for token, kept in zip(tokens, special, strict=True)
    ]


def wordpiece_values(tokenizer: PreTrainedTokenizerFast, description: Mapping[str, Any]) -> dict[str, int | bool | str]:
    """The metadata of a WordPiece tokenizer, by key without `tokenizer.`.

    Args:
        tokenizer: the tokenizer.
        description: its tokenizer.json.

    Raises:
        UserError: llama.cpp cuts texts otherwise, or puts other tokens around them.
    """
    model, normalizer = description["model"], description["normalizer"] or {}
    same = all(normalizer.get(name) == value for name, value in NORMALIZER.items())
    cuts = (description["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
    if model["continuing_subword_prefix"] != INSIDE or not same or not cuts:
        raise UserError(
            "The WordPiece tokenizer cuts texts otherwise than BERT's, which llama.cpp has; export the model to onnx "
            "or openvino."
        )
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    if whole != [tokenizer.cls_token_id, *plain, tokenizer.sep_token_id]:
        raise UserError(
            f"llama.cpp puts the special tokens of begin and separation around a text, and the tokenizer makes {whole} "
            "of 'a'; export the model to onnx or openvino."
        )
    lower = bool(normalizer["lowercase"])
    accents = normalizer["strip_accents"]
    numbers = {name: getattr(tokenizer, f"{own}_token_id") for own, name in _NAMES.items()}
    return {
        "ggml.pre": "default",
        "ggml.normalizer.lowercase": lower,
        "ggml.normalizer.strip_accents": lower if accents is None else bool(accents),
        **{f"ggml.{name}_token_id": number for name, number in numbers.items() if number is not None},
    }
