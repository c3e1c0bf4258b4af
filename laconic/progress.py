"""Progress of long work: library code iterates through a `Track`, and the command line passes one that draws a bar."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """A function that yields items one by one and may show how many are done.

    Args:
        items: the items to yield.
        what: a description of the work, in a few words.
        work: the amount of work of each item, in any unit, for an estimate of the remaining time. None if all items
            take the same time.
    """

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]: ...


def silent(items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
    """The default `Track`, which shows nothing.

    >>> list(silent([1, 2], "Counting"))
    [1, 2]
    """
    return items
