"""Stop a run at a certain call, as if it had been killed."""

from collections.abc import Callable
from typing import Any


class StopError(Exception):
    """Stands for a run that was killed."""


def stop_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which stops the run at its call of this number, from 0."""
    calls = iter(range(call))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise StopError
        return function(*arguments, **options)

    return counted
