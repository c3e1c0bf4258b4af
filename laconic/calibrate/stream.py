"""A model run over all batches piece by piece: block after block, or as a whole where pieces cannot be told apart."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from laconic.calibrate.entry import Call, blocks_to_run, capture, hidden_of
from laconic.formats import Coded
from laconic.model import Batch, LanguageModel, predict


class Stream:
    """`lm` over `batches`. What a block receives besides hidden states (masks, position embeddings, T5's position bias)
    does not depend on the linears of its stack, so it is captured once, by `enter`.

    Of the hidden states one set is kept: those that enter the block where the stream stands."""

    def __init__(self, lm: LanguageModel, batches: Sequence[Batch]) -> None:
        self.lm = lm
        self.batches = batches
        self._blocks: list[nn.Module] = []
        self._calls: list[list[Call]] = []
        self._hidden: list[Tensor] = []
        self._at = 0

    def enter(self, blocks: list[nn.Module]) -> bool:
        """Stand before the first of `blocks`; False where they do not simply follow each other, once each."""
        self._blocks, self._at = blocks, 0
        self._hidden, self._calls = [], []
        needed = blocks_to_run(self.lm, blocks, self.batches[0])
        if needed is None:
            return False
        for batch in self.batches:
            hidden, calls = capture(self.lm, blocks, batch, needed)
            self._hidden.append(hidden)
            self._calls.append(calls)
        return True

    @torch.no_grad()
    def run(self, number: int, blocks: int = 1) -> Tensor:
        """The block where the stream stands, and those behind it up to so many, on batch `number`: the last output."""
        hidden = self._hidden[number]
        for at in range(self._at, self._at + blocks):
            hidden = hidden_of(self._calls[number][at].run(self._blocks[at], hidden))
        return hidden

    def advance(self) -> None:
        """Go on to the next block, with the outputs of this one as it is now."""
        with self.decoded():
            for number in range(len(self.batches)):
                self._hidden[number] = self.run(number)
        self._at += 1

    @contextmanager
    def decoded(self) -> Iterator[None]:
        """Within the context the matrices of codes in the block where the stream stands are decoded once, not for every
        batch; none of them may be replaced meanwhile."""
        with ExitStack() as held:
            for module in self._blocks[self._at].modules():
                if isinstance(module, Coded):
                    held.enter_context(module.held())
            yield

    @torch.no_grad()
    def run_whole(self, number: int) -> None:
        """The whole model on batch `number`."""
        predict(self.lm, self.batches[number])
