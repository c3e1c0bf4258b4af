"""Arguments of the Python entry: each of a kind that it can be of, before anything is done with it.

A recipe and a command line are read by a schema; in Python anything may be given, and most of what is no text or number
would be found out deep inside, or not at all: the text "no" is true.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.compress import Step
from laconic.errors import UserError, must_be
from laconic.methods import Method
from laconic.model.task import check_pretrained

BOOLEANS = ("sequential", "anchored", "allow_dense")
WHOLE = ("samples", "seed", "max_length", "batch_size")


def check_kinds(**given: object) -> None:
    """Raise UserError where an argument of `laconic.compress` is of a kind that it cannot be of.

    given: the arguments by their names.
    """
    for name in WHOLE:
        _check(name, given, "a whole number", _is_whole)
    for name in BOOLEANS:
        _check(name, given, "True or False", lambda value: isinstance(value, bool))
    _check("keep", given, "a number in (0, 1], or a mapping of groups to such numbers", _is_keep)
    _check("allocate", given, "the name of an allocation", _is_text)
    _check("targets", given, "a group or glob, or a list of those", lambda value: _is_text(value) or _are_texts(value))
    _check("label_order", given, "a list of names of classes", lambda value: value is None or _is_list(value))
    _check("track", given, "a function, as laconic.progress.silent is", callable)
    tokenizer = given["tokenizer"]
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise _of_class("tokenizer", "a tokenizer of transformers, as AutoTokenizer.from_pretrained gives", tokenizer)


def model_given(model: object) -> PreTrainedModel | str:
    """What is to be compressed: a model with numbers, or the name of one.

    Raises:
        UserError: it is neither.
    """
    if isinstance(model, (str, os.PathLike)):
        return os.fsdecode(model)
    loaded = check_pretrained(model)
    empty = next((name for name, part in loaded.named_parameters() if part.is_meta), None)
    if empty is not None:
        raise UserError(
            f"The model has no numbers in '{empty}', which is on the meta device; load it by from_pretrained without "
            "device_map='meta'."
        )
    return loaded


def methods_given(method: object) -> tuple[Method | Step | str, ...]:
    """One or several, as several, in their order.

    Raises:
        UserError: there is none, or something else; or they have no order.
    """
    kinds = "a method or a step, by its name or as an object like Svd(rank=8), or a list of those"
    several = (method,) if isinstance(method, (str, Method, Step)) else method
    if not isinstance(several, Iterable) or isinstance(several, (Mapping, set, frozenset, bytes, type)):
        raise must_be("method", kinds, method)
    lines = tuple(several)
    for index, line in enumerate(lines):
        if not isinstance(line, (str, Method, Step)):
            raise must_be(f"method[{index}]", "a method or a step, by its name or as an object", line)
    if not lines:
        raise must_be("method", kinds, method)
    return lines


def texts_given(data: object) -> str | tuple[str, ...]:
    """The name of a source, or the texts themselves.

    Raises:
        UserError: they are neither, or there is nothing in them.
    """
    if isinstance(data, (str, os.PathLike)):
        return os.fsdecode(data)
    if not isinstance(data, Iterable) or isinstance(data, (Mapping, bytes)):
        raise must_be("data", "the name of a source, or a list of texts", data)
    texts: list[str] = []
    for index, text in enumerate(data):
        if not isinstance(text, str):
            raise must_be(f"data[{index}]", "a text", text)
        texts.append(text)
    if not any(text.strip() for text in texts):
        raise UserError("data has no texts; give some, or the name of a source.")
    return tuple(texts)


def _check(name: str, given: Mapping[str, object], kind: str, holds: Callable[[object], bool]) -> None:
    if not holds(given[name]):
        raise must_be(name, kind, given[name])


def _of_class(name: str, kinds: str, got: object) -> UserError:
    # What such an object writes of itself may be pages.
    return UserError(f"{name} must be {kinds}; got an object of the class {type(got).__name__}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_keep(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_text(group) and _is_number(part) for group, part in value.items())
    return value is None or _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _are_texts(value: object) -> bool:
    return isinstance(value, Sequence) and all(_is_text(one) for one in value)
