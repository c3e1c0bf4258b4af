"""`UserError`, the exception for a mistake of the user, and functions that write its message.

The message is one sentence with the place of the mistake, the value and the remedy. The command line prints it as one
line and exits with status 2. Long values are shortened in messages.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

DISTRIBUTION = "laconic-lm"
"""The name of laconic on PyPI, where `laconic` is an unrelated package."""
LONGEST_VALUE, LONGEST_SENTENCE = 240, 3000
"""The largest number of characters of a quoted value, and of a whole message."""
OPEN = (":", ",", " or", " and")
"""Endings of an unfinished line, which the next line continues."""
_WRAPPED = re.compile(r"^(Class v|V)alidation error for (validator|field) '\w+': (\w+Error: )?")
"""The prefix that transformers' configurations put before the message of a validation error."""


class UserError(ValueError):
    """An error in the input of the user. Its message is one sentence that names the remedy.

    Args:
        sentence: the message: the place of the mistake, the value and the remedy. It is shortened to 3000 characters.

    Example:
        >>> from laconic import compress
        >>> compress("MODEL", "gtpq", keep=0.5)
        Traceback (most recent call last):
        laconic.errors.UserError: There is no method 'gtpq': did you mean 'gptq'? known are any-of, asvd, ...
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(truncate(sentence, LONGEST_SENTENCE))


class Notice(UserWarning):
    """A warning that requires no action; the command line prints it as one line."""


class CheckpointNotice(Notice):
    """A warning that a part of a checkpoint is not used as stored.

    For example, Python code in the folder is not run, or weights that another library quantized are dequantized.
    """


class StructureNotice(Notice):
    """A warning that the architecture is unknown, so that layers were found by the structure of the modules."""


def must_be(place: str, requirement: str, got: object) -> UserError:
    """A `UserError` of the form "`place` must be `requirement`; got `got`."."""
    return UserError(f"{place} must be {requirement}; got {quote(got)}.")


def add_place(error: UserError, place: str) -> UserError:
    """The error with `place` in front of its message, unless the message begins with a place already.

    >>> add_place(UserError("keep must be in (0, 1]; got 2."), "recipe.steps[0]")
    UserError('recipe.steps[0]: keep must be in (0, 1]; got 2.')
    """
    return error if str(error).startswith(place.partition(".")[0]) else UserError(f"{place}: {error}")


def unknown(kind: str, name: str, known: Iterable[str], owner: str = "There is") -> UserError:
    """A `UserError` for a name that does not exist; the message suggests the most similar known name.

    Args:
        kind: the kind of thing, such as "parameter".
        name: the name that does not exist.
        known: all names that exist.
        owner: the beginning of the message, such as "The method 'svd' has".
    """
    names, name = sorted(known), truncate(name, LONGEST_VALUE)
    close = get_close_matches(name.lower(), [candidate.lower() for candidate in names], n=1, cutoff=0.5)
    nearest = next((candidate for candidate in names if close and candidate.lower() == close[0]), None)
    hint = f"did you mean '{nearest}'? " if nearest else ""
    return UserError(f"{owner} no {kind} '{name}': {hint}known are {', '.join(names)}.")


def install(extra: str) -> str:
    """The command that installs laconic with an `extra`, for errors about a missing optional library.

    >>> install("onnx")
    "pip install 'laconic-lm[onnx]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def quote(value: object) -> str:
    """`value` as error messages quote it: text in quotes, other values by `repr`. Long values are shortened."""
    if isinstance(value, str):
        return f"'{truncate(value, LONGEST_VALUE)}'"
    return truncate(_Quoted().repr(value), LONGEST_VALUE)


def truncate(text: str, longest: int) -> str:
    """`text` if it has at most `longest` characters, else its beginning and its end with "…" between them."""
    end = longest // 4
    return text if len(text) <= longest else f"{text[: longest - end - 3]} … {text[-end:]}"


class _Quoted(Repr):
    """A `repr` that shortens containers to twelve items and four levels, and long integers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlong = 4, LONGEST_VALUE
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """Keep the order of the keys; `reprlib` sorts them."""
        if level <= 0:
            return "{…}" if x else "{}"
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in list(x)[: self.maxdict]]
        return "{" + ", ".join([*items, *(["…"] if len(x) > len(items) else [])]) + "}"

    def repr_instance(self, x: object, level: int) -> str:
        return str(x)


def reason_of(error: Exception) -> str:
    """The reason in an exception of another library, without a full stop at its end.

    It is the first line of the message, together with following lines if that line is unfinished. The message of a
    `KeyError` is only the key, so "KeyError: " is put before it.
    """
    lines: list[str] = []
    for line in filter(None, (line.strip() for line in str(error).splitlines())):
        lines.append(line)
        if not line.endswith(OPEN):
            break
    reason = _WRAPPED.sub("", " ".join(lines)).rstrip(".:,") or type(error).__name__
    return f"KeyError: {reason}" if isinstance(error, KeyError) else reason
