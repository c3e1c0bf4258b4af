"""The command line under `torchrun` or `accelerate launch`, through `laconic.processes`.

A program that no launcher started imports none of it, because that would import torch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

from laconic.launcher import launched

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def is_first() -> bool:
    """True in the process of rank zero, which alone writes and prints."""
    if not launched():
        return True
    from laconic import processes

    return processes.is_first()


def joined() -> AbstractContextManager[None]:
    """Join the process group of the launcher for the block.

    Raises:
        UserError: the processes do not find each other.
    """
    if not launched():
        return nullcontext()
    from laconic import processes

    return processes.joined()


def sync_errors() -> AbstractContextManager[None]:
    """Raise a UserError of one process in all processes of the block."""
    if not launched():
        return nullcontext()
    from laconic import processes

    return processes.sync_errors()


def on_rank_zero(verb: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run `verb` in the process of rank zero alone; the others wait for its result."""

    @wraps(verb)
    def done(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if not launched():
            return verb(*arguments, **named)
        from laconic import processes

        return processes.on_rank_zero(verb)(*arguments, **named)

    return done
