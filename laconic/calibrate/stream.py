"""A model run over all batches piece by piece: block after block, or as a whole where pieces cannot be told apart."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from laconic.model import Batch, LanguageModel, predict


@dataclass
class _Call:
    """The arguments of one block for one batch; the hidden states are kept apart because they change."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        if "hidden_states" in self.kwargs:
            output = block(*self.args, **{**self.kwargs, "hidden_states": hidden})
        else:
            output = block(hidden, *self.args[1:], **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class Stream:
    """`lm` over `batches`. What a block receives besides hidden states (masks, position embeddings, T5's position bias)
    does not depend on the linears of its stack, so it is captured once, by `enter`."""

    def __init__(self, lm: LanguageModel, batches: Sequence[Batch]) -> None:
        self.lm = lm
        self.batches = batches
        self._blocks: list[nn.Module] = []
        self._calls: list[list[_Call]] = []
        self._hidden: list[Tensor] = []
        self._at = 0

    def enter(self, blocks: list[nn.Module]) -> bool:
        """Stand before the first of `blocks`; False where they do not simply follow each other, once each."""
        captured = [_capture(self.lm, blocks, batch) for batch in self.batches]
        self._blocks, self._at = blocks, 0
        self._hidden = [hidden for hidden, _, _ in captured]
        self._calls = [calls for _, calls, _ in captured]
        return all(order == blocks for _, _, order in captured) and self._is_chain(blocks)

    def _is_chain(self, blocks: list[nn.Module]) -> bool:
        """True where each block reads what the one before it returned, as the first batch shows."""
        left: list[Tensor] = []
        follows: list[bool] = []

        def on_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            follows.append(not left or torch.equal(read, left[-1]))
            left[:] = [output[0] if isinstance(output, tuple) else output]

        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_hook(on_call, with_kwargs=True).remove)
            self.run_whole(0)
        return all(follows)

    @torch.no_grad()
    def run(self, number: int, blocks: int = 1) -> Tensor:
        """The block where the stream stands, and those behind it up to so many, on batch `number`: the last output."""
        hidden = self._hidden[number]
        for at in range(self._at, self._at + blocks):
            hidden = self._calls[number][at].run(self._blocks[at], hidden)
        return hidden

    def advance(self) -> None:
        """Go on to the next block, with the outputs of this one as it is now."""
        self._hidden = [self.run(number) for number in range(len(self.batches))]
        self._at += 1

    @torch.no_grad()
    def run_whole(self, number: int) -> None:
        """The whole model on batch `number`."""
        predict(self.lm, self.batches[number])


def _capture(lm: LanguageModel, blocks: list[nn.Module], batch: Batch) -> tuple[Tensor, list[_Call], list[nn.Module]]:
    """The hidden states that enter the first block, how each block is called, and in which order."""
    calls: list[_Call] = []
    entering: list[Tensor] = []
    order: list[nn.Module] = []

    def on_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if not entering:
            entering.append(hidden)
        order.append(module)
        # Only the first block's states are kept: the others are recomputed from it. A cache would remember the
        # keys of the first run and see every token twice in the second.
        kept = {name: None if isinstance(value, Cache) or value is hidden else value for name, value in kwargs.items()}
        calls.append(_Call(tuple(None if isinstance(a, Cache) or a is hidden else a for a in args), kept))

    with ExitStack() as hooks, torch.no_grad():
        for block in set(blocks):
            hooks.callback(block.register_forward_pre_hook(on_call, with_kwargs=True).remove)
        predict(lm, batch)
    return entering[0], calls, order
