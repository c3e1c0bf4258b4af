"""Type checks for values of config.json that transformers does not check.

Each must be of the kind that the field's readers all expect; what a value means is the business of its class.
"""

from collections.abc import Mapping
from typing import Any

from laconic.errors import must_be

ROPE = ("rope_parameters", "rope_scaling")
WORDS = ("rope_type", "type")
"""Keys of rotary embeddings whose values are text; all others are numbers, lists of numbers or booleans."""


def check_values(raw: Mapping[str, Any], where: str) -> None:
    """Check special tokens, rotary embeddings and class labels, in nested configurations too.

    Args:
        raw: what config.json says.
        where: what a sentence begins with.

    Raises:
        UserError: a value is of another kind.
    """
    inner = {f"{name}.": part for name, part in raw.items() if name.endswith("_config") and isinstance(part, dict)}
    for prefix, part in {"": raw, **inner}.items():
        for name, value in part.items():
            called = f"{where}{prefix}{name}"
            if name.endswith("_token_id") and not _are_tokens(value):
                raise must_be(called, "a whole number, a list of such, or null", value)
            if name == "is_encoder_decoder" and not isinstance(value, bool | None):
                raise must_be(called, "true or false", value)
            if name in ROPE:
                _check_rope(value, called)
            if name == "id2label" and isinstance(value, dict):
                for number in value:
                    if not str(number).isdecimal():
                        raise must_be(f"Each key of {called}", "the number of a class, like 0", number)
            if name == "label2id" and isinstance(value, dict):
                for label, number in value.items():
                    # Old files have it as text, which nobody minds.
                    if not (_is_whole(number) or str(number).isdecimal()):
                        raise must_be(f"{called}, {label},", "the number of a class", number)


def _are_tokens(value: object) -> bool:
    return value is None or all(map(_is_whole, value if isinstance(value, list) else [value]))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_rope(value: object, called: str) -> None:
    """Check a mapping of numbers, or one such mapping for each layer type."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise must_be(called, "an object", value)
    for name, one in value.items():
        if name in WORDS:
            if not isinstance(one, str):
                raise must_be(f"{called}.{name}", "the name of a kind of rotary embedding", one)
        elif isinstance(one, dict):
            _check_rope(one, f"{called}.{name}")
        elif not all(isinstance(number, int | float | None) for number in (one if isinstance(one, list) else [one])):
            raise must_be(f"{called}.{name}", "a number, or a list of numbers", one)
