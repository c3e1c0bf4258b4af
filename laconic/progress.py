"""How long work reports itself: library code walks its items through a `Track`; the command line draws the bar."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Yields `items` one by one and may show how far it got; `what` names the work in a few words."""

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]: ...


def silent(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The default: no report."""
    return items
