"""The Unigram tokenizer of SentencePiece in a GGUF file, as XLM-RoBERTa has it.

llama.cpp takes the pieces with the largest sum of scores. Spaces are "▁", one before each word.

Source: `llm_tokenizer_ugm_session` of src/llama-vocab.cpp in llama.cpp (release v0.4.0).
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from laconic.errors import UserError

UNUSED_SCORE = -10000.0
"""The score of tokens that are no pieces, so that no text is cut into them."""
_WORDS = ["WhitespaceSplit", "Metaspace"]


def piece_scores(description: Mapping[str, Any], size: int) -> list[float]:
    """The score of each token.

    Args:
        description: the tokenizer.json of the tokenizer.
        size: the number of tokens.

    Example:
        >>> piece_scores({"model": {"vocab": [["▁a", -1.5]]}}, 2)
        [-1.5, -10000.0]
    """
    own = [score for _, score in description["model"]["vocab"]]
    return own + [UNUSED_SCORE] * (size - len(own))


def unigram_values(description: Mapping[str, Any]) -> dict[str, bool | str | bytes]:
    """The metadata of a Unigram tokenizer, by key without `tokenizer.`.

    Args:
        description: its tokenizer.json.

    Raises:
        UserError: llama.cpp cuts texts otherwise.
    """
    normalizers, cuts = (_steps(description[part]) for part in ("normalizer", "pre_tokenizer"))
    kinds = [step["type"] for step in cuts]
    other = [step["type"] for step in normalizers if step["type"] != "Precompiled"]
    if other or kinds != _WORDS or cuts[1]["prepend_scheme"] != "always" or description["model"]["byte_fallback"]:
        raise UserError(
            "The Unigram tokenizer cuts texts otherwise than at white space, or changes them before; export the model "
            "to onnx or openvino."
        )
    values: dict[str, bool | str | bytes] = {
        "ggml.pre": "default",
        "ggml.add_space_prefix": True,
        "ggml.remove_extra_whitespaces": True,
    }
    for step in normalizers:
        values["ggml.precompiled_charsmap"] = b64decode(step["precompiled_charsmap"])
    return values


def _steps(entry: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer."""
    if entry is None:
        return []
    return entry.get("normalizers") or entry.get("pretokenizers") or [entry]
