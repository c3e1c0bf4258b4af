"""How long work reports itself: library code walks its items through a `Track`; the command line draws the bar."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Yields `items` one by one and may show how far it got; `what` names the work in a few words.

    work: how much of it each item is, in any unit, where items differ much: the time left is told by it.
    """

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]: ...


def silent(items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
    """The default: no report."""
    return items
