"""Lend the parts of a streamed model when they are called."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from laconic.model.anatomy import Anatomy
from laconic.model.enumeration import find_stacks
from laconic.model.forward import replacing_forward
from laconic.model.loans import Loans

Lend = Callable[[str], AbstractContextManager[None]]
"""Returns the context in which the part at a path has its weights."""


def find_parts(model: PreTrainedModel, anatomy: Anatomy, loans: Loans | None) -> list[str]:
    """Find the blocks of a streamed model, and the modules outside the blocks that have tensors on disk.

    Args:
        model: the model.
        anatomy: its anatomy.
        loans: its loans; None for a model in memory.

    Returns:
        Their paths; none for a model in memory.
    """
    if loans is None:
        return []
    on_disk = loans.placeholders.keys()
    blocks = [path for _, found in find_stacks(model, anatomy) for path, _ in found]
    outside = [
        name
        for name, module in model.named_modules()
        if not any(f"{name}.".startswith(f"{path}.") for path in blocks)
        and any(id(tensor) in on_disk for tensor in (*module._parameters.values(), *module._buffers.values()))
    ]
    return [*blocks, *outside]


@contextmanager
def lend_on_call(model: nn.Module, parts: Collection[str], lend: Lend, keep: bool) -> Iterator[None]:
    """A context in which each part has its weights while it runs.

    `forward` of each part is wrapped, and no hook is used: a stand-in that later replaces `forward` needs no weights.

    Args:
        model: a streamed model.
        parts: the paths of its parts, none of which is inside another.
        lend: lends a part.
        keep: a part keeps its weights after its first call, until the end of the context.
    """
    with ExitStack() as kept, ExitStack() as wrapped:
        for path in parts:
            module = model.get_submodule(path)
            wrapped.enter_context(replacing_forward(module, _lending(module, path, lend, kept if keep else None)))
        yield


def _lending(module: nn.Module, path: str, lend: Lend, kept: ExitStack | None) -> Callable[..., Any]:
    """The forward pass of a module, with its weights on loan for the time of the call, or until `kept` is closed."""
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if kept is None:
            with lend(path):
                return forward(*args, **kwargs)
        kept.enter_context(lend(path))
        vars(module)["forward"] = forward
        return forward(*args, **kwargs)

    return run
