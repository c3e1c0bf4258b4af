"""Checks of the arguments of public functions: each has a value of a right type before a model is loaded.

A recipe and a command line are read by a schema; in Python anything may be given, and most wrong values would be found
deep inside, or not at all: the text "no" is true.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike, fsdecode
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from laconic.api.inputs import local_device
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.sources import read
from laconic.compress import Step
from laconic.errors import UserError, must_be
from laconic.files import expand_user
from laconic.methods import Method
from laconic.model.task import check_pretrained
from laconic.recipe.entry import ModelInput
from laconic.recipe.run import IN_MEMORY

LARGEST_COUNT = 2**31 - 1
"""The largest batch or sequence length that is taken: what 32 bits hold."""


def check_kinds(**given: object) -> None:
    """Raise UserError if an argument has a value of a wrong type.

    Args:
        given: arguments of public functions by their names; the names say which types are right.

    Example:
        >>> check_kinds(samples=2.5)
        Traceback (most recent call last):
        laconic.errors.UserError: samples must be a whole number; got 2.5.
    """
    for name, value in given.items():
        kind, holds = _KINDS[name]
        if not holds(value):
            raise must_be(name, kind, value)


def to_model_input(
    model: object,
    tokenizer: object = None,
    label_order: Sequence[str | int] | None = None,
    device: str = "cpu",
    place: str = "model",
) -> ModelInput:
    """The model that a caller gives, with its tokenizer.

    Args:
        model: a loaded model, or a folder or hub name.
        tokenizer: a tokenizer of transformers, or None.
        label_order: classes of the model in the order of its outputs, or None.
        device: where a model that is given by its name is loaded to.
        place: the argument that is named in errors.

    Raises:
        UserError: one of them is of another type, or the model has no numbers.
    """
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        # What such an object prints as may be pages long.
        raise UserError(
            "tokenizer must be a tokenizer of transformers, as AutoTokenizer.from_pretrained gives; got an object of "
            f"the class {type(tokenizer).__name__}."
        )
    common = {"tokenizer": tokenizer, "label_order": label_order, "device": local_device(device)}
    if isinstance(model, (str, PathLike)):
        return ModelInput(name=fsdecode(model), **common)
    try:
        loaded = check_pretrained(model)
    except UserError as error:
        raise UserError(re.sub("^model", place, str(error))) from error
    empty = next((name for name, part in loaded.named_parameters() if part.is_meta), None)
    if empty is not None:
        raise UserError(
            f"The {place} has no numbers in '{empty}', which is on the meta device; load it by from_pretrained without "
            "device_map='meta'."
        )
    return ModelInput(name=loaded.config.name_or_path or "", loaded=loaded, **common)


def to_folder(folder: object, name: str = "output") -> Path:
    """The folder that an argument names; the empty name would be the working folder.

    Raises:
        UserError: it is no path, or empty.

    Example:
        >>> to_folder("small")
        PosixPath('small')
    """
    if not isinstance(folder, (str, PathLike)) or not fsdecode(folder).strip():
        raise must_be(name, "the name of a folder", folder)
    return expand_user(fsdecode(folder))


def to_methods(method: object) -> tuple[Method | Step | str, ...]:
    """One or several methods and steps, as several, in their order.

    Raises:
        UserError: there is none, one is something else, or they have no order, as in a set.

    Example:
        >>> to_methods("svd")
        ('svd',)
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


def to_texts(data: object) -> str | tuple[str, ...]:
    """The name of a source, or the texts themselves.

    Raises:
        UserError: `data` is neither, or all texts are empty.

    Example:
        >>> to_texts(iter(["a cat"]))
        ('a cat',)
    """
    if isinstance(data, (str, PathLike)):
        return fsdecode(data)
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


def to_corpus(data: object) -> Corpus:
    """The training rows of a source, or the texts themselves.

    Raises:
        UserError: there is no such source, or `data` is none and no texts.

    Example:
        >>> to_corpus(["a cat", "a dog"]).source
        'memory'
    """
    texts = to_texts(data)
    if isinstance(texts, str):
        return read(texts, "train")
    return Corpus(IN_MEMORY, "train", tuple(map(Example, texts)))


def to_tasks(tasks: str | Sequence[str], limit: int | None) -> tuple[str, ...]:
    """One or several tasks, as several.

    Raises:
        UserError: `limit` is not above 0.
    """
    if limit is not None and limit < 1:
        raise must_be("limit", "at least 1 row", limit)
    return (tasks,) if isinstance(tasks, str) else tuple(tasks)


def to_counts(name: str, counts: int | Sequence[int]) -> tuple[int, ...]:
    """One or several counts, as several, each once.

    Raises:
        UserError: one is not in [1, 2³¹).

    Example:
        >>> to_counts("batch", 8)
        (8,)
    """
    several = (counts,) if isinstance(counts, int) else tuple(counts)
    if any(count < 1 for count in several):
        raise must_be(name, _COUNTS[0], counts)
    if any(count > LARGEST_COUNT for count in several):
        raise must_be(name, f"at most {LARGEST_COUNT}", counts)
    return tuple(dict.fromkeys(several))


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


def _or_none(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or holds(value)


def _are_whole(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(_is_whole(part) for part in value)


_COUNTS = ("whole numbers above 0, like (1, 8)", lambda value: _is_whole(value) or _are_whole(value))
_KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("samples", "seed", "max_length", "batch_size", "workers"), ("a whole number", _is_whole)),
    **dict.fromkeys(
        ("sequential", "anchored", "allow_dense", "retry_failed", "dry_run"),
        ("True or False", lambda value: isinstance(value, bool)),
    ),
    "keep": ("a number in (0, 1], or a mapping of groups to such numbers", _is_keep),
    "allocate": ("the name of an allocation", _is_text),
    "targets": ("a group or glob, or a list of those", lambda value: _is_text(value) or _are_texts(value)),
    "label_order": ("a list of names of classes", _or_none(_is_list)),
    "tasks": ("the name of a task, or a list of those", lambda value: _is_text(value) or _are_texts(value)),
    "limit": ("a whole number, or None for all rows", _or_none(_is_whole)),
    **dict.fromkeys(("batch", "length"), _COUNTS),
    **dict.fromkeys(("runtime", "to", "executor"), ("a name", _is_text)),
    "address": ("a text, or None", _or_none(_is_text)),
    "track": ("a function, as laconic.progress.silent is", callable),
}
