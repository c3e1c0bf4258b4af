"""The names by which llama.cpp knows how a byte-level tokenizer cuts a text before it merges bytes.

llama.cpp has these rules in its code, and a file only names one. `convert_hf_to_gguf.py` finds the name by a hash of
the tokens of one text, which depends on the vocabulary. Here the rules themselves are compared, so that tokenizers with
another vocabulary are recognised.

Source: `llm_tokenizer_bpe` and `llama_vocab::impl::load` of `src/llama-vocab.cpp` in llama.cpp (release v0.4.0).
"""

from collections.abc import Mapping
from typing import Any

from laconic.errors import UserError

_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_END}"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_END}"
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_WORDS = "words of GPT-2"
"""The rule of `ByteLevel` with `use_regex`."""
DIGITS, PUNCTUATION = "single digits", "punctuation"

Rules = tuple[str, ...]
NAMES: Mapping[tuple[Rules, bool], str] = {
    ((GPT2_WORDS,), False): "gpt-2",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_GPT4O,), False): "gpt-4o",
    ((DIGITS, GPT2_WORDS), False): "starcoder",
    ((PUNCTUATION, GPT2_WORDS, "[0-9][0-9][0-9]"), False): "falcon",
}
"""The name of each list of rules, and of whether a word that is a token is kept whole."""


def find_name(pre_tokenizer: Mapping[str, Any] | None, ignore_merges: bool) -> str:
    """The name of the rules of a tokenizer.

    Args:
        pre_tokenizer: its entry `pre_tokenizer` in tokenizer.json.
        ignore_merges: whether a word that is a token is kept whole.

    Raises:
        UserError: llama.cpp has no such rules.

    Example:
        >>> find_name({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, ignore_merges=False)
        'gpt-2'
    """
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    rules = [_rule(step) for step in steps]
    name = NAMES.get((tuple(rule for rule in rules if rule), ignore_merges))
    if name is None or None in rules:
        raise UserError(
            "The tokenizer cuts texts by rules that no pre-tokenizer of llama.cpp known here has "
            f"({', '.join(sorted(NAMES.values()))}); export the model to onnx or openvino."
        )
    return name


def _rule(step: Mapping[str, Any]) -> str | None:
    """The rule of a step; "" for none, None if llama.cpp has no such step."""
    match step["type"]:
        case "ByteLevel" if not step["add_prefix_space"]:
            return GPT2_WORDS if step["use_regex"] else ""
        case "Digits" if step["individual_digits"]:
            return DIGITS
        case "Punctuation" if step["behavior"] == "Contiguous":
            return PUNCTUATION
        # Every text consists of matches, so that removing all but them leaves the same parts.
        case "Split" if (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True)):
            return step["pattern"].get("Regex")
    return None
