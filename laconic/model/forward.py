"""Run another function in place of the forward pass of a module."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replacing_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A context in which a call of a module runs another function in place of its `forward`.

    The module stays in its place, because a model may read attributes of its modules.

    Args:
        module: the module; its hooks run as before.
        forward: the function, with the arguments of `forward`.

    Example:
        >>> layer = nn.Identity()
        >>> with replacing_forward(layer, lambda x: 2 * x):
        ...     layer(3)
        6
        >>> layer(3)
        3
    """
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own
