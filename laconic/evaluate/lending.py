"""Run a streamed model with each of its parts on loan only while it is called."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from laconic.model import LanguageModel
from laconic.model.loans import tensors_below


@contextmanager
def lent_while_called(lm: LanguageModel) -> Iterator[None]:
    """A context in which a streamed model can run: each block, embedding and head is read when it is called.

    Args:
        lm: the model. Nothing is done for a model in memory.
    """
    with ExitStack() as hooks:
        for path in parts_on_loan(lm):
            module, loan = lm.model.get_submodule(path), ExitStack()
            hooks.enter_context(loan)
            hooks.enter_context(module.register_forward_pre_hook(_Borrow(lm, path, loan)))
            hooks.enter_context(module.register_forward_hook(_Return(loan), always_call=True))
        yield


class _Borrow:
    """A hook that puts a part on loan."""

    def __init__(self, lm: LanguageModel, path: str, loan: ExitStack) -> None:
        self._lm, self._path, self._loan = lm, path, loan

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._loan.enter_context(self._lm.on_loan(self._path))


class _Return:
    """A hook that ends the loan of a part."""

    def __init__(self, loan: ExitStack) -> None:
        self._loan = loan

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._loan.close()


def parts_on_loan(lm: LanguageModel) -> Iterator[str]:
    """The paths of the blocks of a streamed model, and of the modules outside them that have tensors on disk.

    Args:
        lm: the model. A model in memory has no such parts.
    """
    if lm.loans is None:
        return
    placeholders = lm.loans.placeholders
    blocks = [path for _, stack in lm.stacks() for path, _ in stack]
    yield from blocks
    for path, module in lm.model.named_modules():
        own = {id(tensor) for owner, _, tensor in tensors_below(module) if owner is module}
        if own & placeholders.keys() and not any(path == block or path.startswith(f"{block}.") for block in blocks):
            yield path
