"""The program as one of several processes (`laconic.processes`).

A program that was started alone needs nothing of that, so it does not wait for torch to be imported for it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

from laconic.launcher import launched

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    if not launched():
        return True
    from laconic import processes

    return processes.is_first()


def joined() -> AbstractContextManager[None]:
    """Within the block what a launcher started is one group.

    Raises:
        UserError: the processes do not find each other.
    """
    if not launched():
        return nullcontext()
    from laconic import processes

    return processes.joined()


def agreed() -> AbstractContextManager[None]:
    """Within the block a UserError of one process is raised in all of them."""
    if not launched():
        return nullcontext()
    from laconic import processes

    return processes.sync_errors()


def by_first(verb: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`verb`, done by the first process as if it were alone; the others wait for what came of it."""

    @wraps(verb)
    def done(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if not launched():
            return verb(*arguments, **named)
        from laconic import processes

        return processes.on_rank_zero(verb)(*arguments, **named)

    return done
