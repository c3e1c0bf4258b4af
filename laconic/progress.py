"""Progress of long work: library code iterates through a `Track`, and the command line draws a bar."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """A function that yields items one by one and may show how many are done.

    Args:
        items: what is worked on.
        what: the work in a few words.
        work: how much each item is, in any unit; the remaining time is estimated from it. None where all are alike.
    """

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]: ...


def silent(items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
    """The default `Track`, which shows nothing.

    >>> list(silent([1, 2], "Counting"))
    [1, 2]
    """
    return items
