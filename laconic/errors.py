"""The one exception a user sees, and the two sentences every such error is made of.

A `UserError` says what was wrong, where, with which value, and what would be right. The command line prints it
as one line and exits with status 2; a library caller catches one class.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user asked for or supplied; its text is one sentence that names the remedy."""


class Notice(UserWarning):
    """What a user should know and need not act on; the command line shows it as one line."""


class CheckpointNotice(Notice):
    """Said when a model is read otherwise than it is stored: code beside it left alone, codes turned into numbers."""


class StructureNotice(Notice):
    """Said when a model is of no known architecture and its matrices were found by its structure."""


def must_be(place: str, requirement: str, got: object) -> UserError:
    """The first sentence: `place` must be `requirement`; got `got`."""
    shown = f"'{got}'" if isinstance(got, str) else got
    return UserError(f"{place} must be {requirement}; got {shown}.")


def unknown(kind: str, name: str, known: Iterable[str], owner: str = "There is") -> UserError:
    """The second sentence: there is no `kind` called `name`; the nearest known name is suggested.

    `owner` says whose it would be, as "The method 'svd' has".
    """
    names = sorted(known)
    close = get_close_matches(name.lower(), [candidate.lower() for candidate in names], n=1, cutoff=0.5)
    nearest = next((candidate for candidate in names if close and candidate.lower() == close[0]), None)
    hint = f"did you mean '{nearest}'? " if nearest else ""
    return UserError(f"{owner} no {kind} '{name}': {hint}known are {', '.join(names)}.")


def reason_of(error: Exception) -> str:
    """What a library's `error` says, without a full stop: its first line, and the next where that ends in a colon."""
    said: list[str] = []
    for line in filter(None, (line.strip() for line in str(error).splitlines())):
        said.append(line)
        if not line.endswith(":"):
            break
    return " ".join(said).rstrip(".:") or type(error).__name__
