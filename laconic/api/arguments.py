"""Check and convert the arguments of public functions before a model is loaded.

A recipe and a command line are parsed by a schema. In Python, a wrong value would raise an error much later, or no
error at all: for a boolean, the text "no" is true.
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
from laconic.recipe.schema import IN_MEMORY

LARGEST_COUNT = 2**31 - 1
"""The largest accepted batch size or sequence length, which fits into 32 bits."""


def check_kinds(**arguments: object) -> None:
    """Raise UserError if an argument has a value of a wrong type.

    Args:
        arguments: arguments of public functions by name; the name determines the type.

    Example:
        >>> check_kinds(samples=2.5)
        Traceback (most recent call last):
        laconic.errors.UserError: samples must be a whole number; got 2.5.
    """
    for name, value in arguments.items():
        requirement, is_valid = _KINDS[name]
        if not is_valid(value):
            raise must_be(name, requirement, value)


def to_model_input(
    model: object,
    tokenizer: object = None,
    label_order: Sequence[str | int] | None = None,
    device: str = "cpu",
    place: str = "model",
) -> ModelInput:
    """Convert the argument `model` of a public function.

    Args:
        model: a loaded model, or a folder or hub name.
        tokenizer: a tokenizer of transformers, or None.
        label_order: class names in the order of the model's outputs, or None.
        device: the device for a model that is given by its name.
        place: the name of the argument in errors.

    Raises:
        UserError: an argument has another type, or the model is on the meta device.
    """
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        # The repr of such an object may be pages long.
        raise UserError(
            "tokenizer must be a tokenizer of transformers, as AutoTokenizer.from_pretrained returns; got an object of "
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
            f"The {place} has no values in '{empty}', which is on the meta device; load it by from_pretrained without "
            "device_map='meta'."
        )
    return ModelInput(name=loaded.config.name_or_path or "", loaded=loaded, **common)


def to_folder(folder: object, name: str = "output") -> Path:
    """Convert an argument that names a folder. An empty name is refused, because it would mean the working folder.

    Raises:
        UserError: the argument is not a path, or is empty.

    Example:
        >>> to_folder("small")
        PosixPath('small')
    """
    if not isinstance(folder, (str, PathLike)) or not fsdecode(folder).strip():
        raise must_be(name, "the name of a folder", folder)
    return expand_user(fsdecode(folder))


def to_methods(method: object) -> tuple[Method | Step | str, ...]:
    """Convert one or several methods and steps to a tuple.

    Raises:
        UserError: the list is empty, has an item of another type, or is a set, which has no order.

    Example:
        >>> to_methods("svd")
        ('svd',)
    """
    requirement = "a method or a step, by its name or as an object like Svd(rank=8), or a list of those"
    items = (method,) if isinstance(method, (str, Method, Step)) else method
    if not isinstance(items, Iterable) or isinstance(items, (Mapping, set, frozenset, bytes, type)):
        raise must_be("method", requirement, method)
    lines = tuple(items)
    for index, line in enumerate(lines):
        if not isinstance(line, (str, Method, Step)):
            raise must_be(f"method[{index}]", "a method or a step, by its name or as an object", line)
    if not lines:
        raise must_be("method", requirement, method)
    return lines


def to_texts(data: object) -> str | tuple[str, ...]:
    """Convert the argument `data`: the name of a source, or texts.

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
    """The training rows of a source, or the texts as a corpus.

    Raises:
        UserError: there is no such source, or `data` is neither the name of a source nor texts.

    Example:
        >>> to_corpus(["a cat", "a dog"]).source
        'memory'
    """
    texts = to_texts(data)
    if isinstance(texts, str):
        return read(texts, "train")
    return Corpus(IN_MEMORY, "train", tuple(map(Example, texts)))


def to_tasks(
    tasks: str | Sequence[str], limit: int | None, label_order: Sequence[str | int] | None = None
) -> tuple[str, ...]:
    """Convert one or several tasks to a tuple, and check the settings of tasks.

    Args:
        tasks: names of tasks.
        limit: the maximum rows of each task; None for all.
        label_order: class names as the tasks spell them; None for those of the model.

    Raises:
        UserError: `limit` is not above 0; or a setting is given, and no task.
    """
    if limit is not None and limit < 1:
        raise must_be("limit", "at least 1 row", limit)
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    for setting, value in (("limit", limit), ("label_order", label_order)):
        if value is not None and not names:
            raise UserError(
                f"{setting} is a setting of tasks, and none is named; name one, like glue/sst2, or leave it out."
            )
    return names


def to_counts(name: str, counts: int | Sequence[int]) -> tuple[int, ...]:
    """Convert one or several counts to a tuple without duplicates.

    Raises:
        UserError: a count is not in [1, 2³¹).

    Example:
        >>> to_counts("batch", 8)
        (8,)
    """
    values = (counts,) if isinstance(counts, int) else tuple(counts)
    if any(count < 1 for count in values):
        raise must_be(name, _COUNTS[0], counts)
    if any(count > LARGEST_COUNT for count in values):
        raise must_be(name, f"at most {LARGEST_COUNT}", counts)
    return tuple(dict.fromkeys(values))


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_keep(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_text(group) and _is_number(part) for group, part in value.items())
    return value is None or value == "auto" if isinstance(value, str | None) else _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _are_texts(value: object) -> bool:
    return isinstance(value, Sequence) and all(map(_is_text, value))


def _or_none(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_valid(value)


def _are_whole(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(_is_whole(part) for part in value)


_COUNTS = ("whole numbers above 0, like (1, 8)", lambda value: _is_whole(value) or _are_whole(value))
_KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("samples", "seed", "batch_size", "workers", "port"), ("a whole number", _is_whole)),
    "max_length": ("a whole number", _or_none(_is_whole)),
    **dict.fromkeys(
        ("sequential", "anchored", "allow_dense", "retry_failed", "dry_run"),
        ("True or False", lambda value: isinstance(value, bool)),
    ),
    "stream": ("True, False or None", lambda value: value is None or isinstance(value, bool)),
    "cache": ("True or False", lambda value: isinstance(value, bool)),
    "keep": ("a number in (0, 1], or a mapping of groups to such numbers", _is_keep),
    "allocate": ("the name of an allocation", _is_text),
    "targets": ("a group or glob, or a list of those", lambda value: _is_text(value) or _are_texts(value)),
    "label_order": ("a list of names of classes", _or_none(_is_list)),
    "tasks": ("the name of a task, or a list of those", lambda value: _is_text(value) or _are_texts(value)),
    "limit": ("a whole number, or None for all rows", _or_none(_is_whole)),
    "context": ("a whole number, or None for the default", _or_none(_is_whole)),
    **dict.fromkeys(("batch", "length"), (_COUNTS[0], _or_none(_COUNTS[1]))),
    **dict.fromkeys(("runtime", "to", "executor", "dtype"), ("a name", _is_text)),
    "address": ("a text, or None", _or_none(_is_text)),
    "track": ("a function like laconic.progress.silent", callable),
}
