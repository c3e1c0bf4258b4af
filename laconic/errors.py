"""The one exception a user sees, and the two sentences every such error is made of.

A `UserError` says what was wrong, where, with which value, and what would be right. The command line prints it
as one line and exits with status 2; a library caller catches one class. Whatever a file or an option holds, a sentence
stays one that can be read: values are quoted in part where they are long.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

DISTRIBUTION = "laconic-lm"
"""What pip knows laconic by; `laconic` there is a program of others."""
LONGEST_VALUE, LONGEST_SENTENCE = 240, 3000
"""Characters of a value that are quoted, and of what is said in all."""
OPEN = (":", ",", " or", " and")
"""Endings of an unfinished line, which the next line continues."""
_WRAPPED = re.compile(r"^(Class v|V)alidation error for (validator|field) '\w+': (\w+Error: )?")
"""The prefix that transformers' configurations put before the message of a validation error."""


class UserError(ValueError):
    """A mistake in what the user asked for or supplied; its text is one sentence that names the remedy."""

    def __init__(self, sentence: str) -> None:
        super().__init__(shortened(sentence, LONGEST_SENTENCE))


class Notice(UserWarning):
    """What a user should know and need not act on; the command line shows it as one line."""


class CheckpointNotice(Notice):
    """Said when a model is read otherwise than it is stored: code beside it left alone, codes turned into numbers."""


class StructureNotice(Notice):
    """Said when a model is of no known architecture and its matrices were found by its structure."""


def must_be(place: str, requirement: str, got: object) -> UserError:
    """The first sentence: `place` must be `requirement`; got `got`."""
    return UserError(f"{place} must be {requirement}; got {shown(got)}.")


def placed(error: UserError, place: str) -> UserError:
    """The same sentence with its place in front, unless it begins with one.

    >>> placed(UserError("keep must be in (0, 1]; got 2."), "recipe.steps[0]")
    UserError('recipe.steps[0]: keep must be in (0, 1]; got 2.')
    """
    return error if str(error).startswith(place.partition(".")[0]) else UserError(f"{place}: {error}")


def unknown(kind: str, name: str, known: Iterable[str], owner: str = "There is") -> UserError:
    """The second sentence: there is no `kind` called `name`; the nearest known name is suggested.

    `owner` says whose it would be, as "The method 'svd' has".
    """
    names, name = sorted(known), shortened(name, LONGEST_VALUE)
    close = get_close_matches(name.lower(), [candidate.lower() for candidate in names], n=1, cutoff=0.5)
    nearest = next((candidate for candidate in names if close and candidate.lower() == close[0]), None)
    hint = f"did you mean '{nearest}'? " if nearest else ""
    return UserError(f"{owner} no {kind} '{name}': {hint}known are {', '.join(names)}.")


def install(extra: str) -> str:
    """The remedy where an optional library is missing: the command that installs laconic with this `extra`.

    >>> install("onnx")
    "pip install 'laconic-lm[onnx]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def shown(value: object) -> str:
    """`value` as an error quotes it: text in quotes, anything else as Python writes it, both in part where long."""
    if isinstance(value, str):
        return f"'{shortened(value, LONGEST_VALUE)}'"
    return shortened(_Quoted().repr(value), LONGEST_VALUE)


def shortened(text: str, longest: int) -> str:
    """`text`, or its beginning and its end."""
    end = longest // 4
    return text if len(text) <= longest else f"{text[: longest - end - 3]} … {text[-end:]}"


class _Quoted(Repr):
    """Containers as Python writes them, a few levels deep and a few items wide, and numbers however long they are."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlong = 4, LONGEST_VALUE
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """In its own order."""
        if level <= 0:
            return "{…}" if x else "{}"
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in list(x)[: self.maxdict]]
        return "{" + ", ".join([*items, *(["…"] if len(x) > len(items) else [])]) + "}"

    def repr_instance(self, x: object, level: int) -> str:
        return str(x)


def reason_of(error: Exception) -> str:
    """The message of a library's `error`, without its full stop: the first line, and those that continue it.

    A KeyError says nothing but the key, so its name is put before that.
    """
    said: list[str] = []
    for line in filter(None, (line.strip() for line in str(error).splitlines())):
        said.append(line)
        if not line.endswith(OPEN):
            break
    reason = _WRAPPED.sub("", " ".join(said)).rstrip(".:,") or type(error).__name__
    return f"KeyError: {reason}" if isinstance(error, KeyError) else reason
