"""What every executor does: it draws tasks as its workers become free, and gives their records as they are done."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from laconic.study.worker import Task

ATTEMPTS = 3
"""How many workers may be lost over one cell."""


class Executor(Protocol):
    """Measures tasks; the order of the records is that in which they are done."""

    def run(self, tasks: Iterable[Task | None]) -> Iterator[dict[str, Any]]:
        """The record of every task; the next one is drawn when there is a worker for it.

        None among them: there is none before one that runs is done; where none runs, this ends.
        """
        ...
