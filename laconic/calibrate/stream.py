"""Run the blocks of a model one after another over all batches, on inputs captured once.

Only the model knows how it calls its blocks, so it runs once up to the last block, and its calls are captured. Blocks
are skipped meanwhile where that changes nothing: masks and positions do not depend on them. T5 makes its position bias
in the first block, so that block runs; where arguments depend on other blocks too, all run.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from laconic.calibrate.activation_capture import RunEnded
from laconic.formats import PackedCodes
from laconic.model import Batch, LanguageModel, predict


@dataclass(frozen=True)
class Call:
    """The arguments of one block for one batch; the hidden states are kept apart because they change."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def from_arguments(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """That of a block that was called with these arguments."""
        hidden = _read(args, kwargs)
        # A cache would remember the keys of the first run and see every token twice in the second.
        kept = [None if isinstance(value, Cache) or value is hidden else value for value in (*args, *kwargs.values())]
        return cls(tuple(kept[: len(args)]), dict(zip(kwargs, kept[len(args) :], strict=True)))

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        """What `block` returns for these hidden states."""
        if "hidden_states" in self.kwargs:
            return block(*self.args, **{**self.kwargs, "hidden_states": hidden})
        return block(hidden, *self.args[1:], **self.kwargs)


def hidden_states_of(output: Any) -> Tensor:
    """The hidden states in what a block returned."""
    return output[0] if isinstance(output, tuple) else output


def capture_inputs(
    lm: LanguageModel, blocks: Sequence[nn.Module], batch: Batch, needed: "BlocksToRun"
) -> tuple[Tensor, list[Call]]:
    """The hidden states that enter the first of `blocks`, and how each is called."""
    entering: list[Tensor] = []
    calls: list[Call] = []

    def on_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(_read(args, kwargs))
        calls.append(Call.from_arguments(args, kwargs))
        del entering[1:]
        if block is blocks[-1]:
            raise RunEnded

    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(on_call, with_kwargs=True).remove)
        hooks.enter_context(_skip_blocks(blocks, needed))
        with suppress(RunEnded):
            predict(lm, batch)
    return entering[0], calls


@dataclass(frozen=True)
class BlocksToRun:
    """How many of the blocks must run, and what one of them returned, which the others return as well."""

    count: int
    form: Any


def blocks_to_run(lm: LanguageModel, blocks: Sequence[nn.Module], batch: Batch) -> BlocksToRun | None:
    """How many of `blocks`, from the first, must run for each to be called as it really is.

    None where they do not follow each other, once each, and each reads what the one before it returned. One row of
    `batch` is looked at.
    """
    row = {name: tensor[:1] for name, tensor in batch.items()}
    really = _record_calls(lm, blocks, row)
    if really is None:
        return None
    calls, outputs = really
    if len({_tuple_length(output) for output in outputs}) == 1:
        # A block that returns more than hidden states may have made something that the others are called with.
        for count in (0, 1) if _tuple_length(outputs[0]) in (None, 1) else (1,):
            needed = BlocksToRun(count, outputs[0])
            if count < len(blocks) and _equal(capture_inputs(lm, blocks, row, needed)[1], calls):
                return needed
    return BlocksToRun(len(blocks), None)


def _record_calls(lm: LanguageModel, blocks: Sequence[nn.Module], row: Batch) -> tuple[list[Call], list[Any]] | None:
    """How each of `blocks` is called in a run of the whole model, and what it returns; None where they are no chain."""
    order: list[nn.Module] = []
    calls: list[Call] = []
    outputs: list[Any] = []
    follows: list[bool] = []

    def on_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        order.append(block)
        follows.append(not outputs or torch.equal(_read(args, kwargs), hidden_states_of(outputs[-1])))
        calls.append(Call.from_arguments(args, kwargs))
        outputs.append(output)

    with ExitStack() as hooks, torch.no_grad():
        for block in set(blocks):
            hooks.callback(block.register_forward_hook(on_call, with_kwargs=True).remove)
        predict(lm, row)
    return (calls, outputs) if order == list(blocks) and all(follows) else None


@contextmanager
def _skip_blocks(blocks: Sequence[nn.Module], needed: BlocksToRun) -> Iterator[None]:
    """Within the context those of `blocks` that need not run return what they read."""
    form = [needed.form]

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        hidden = _read(args, kwargs)
        return (hidden, *form[0][1:]) if isinstance(form[0], tuple) else hidden

    def on_return(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        form[0] = output

    with ExitStack() as hooks:
        for block in blocks[: needed.count]:
            hooks.callback(block.register_forward_hook(on_return).remove)
        for block in blocks[needed.count :]:
            # Not by another module: a model may ask its blocks what they are.
            own = dict(block.__dict__)
            block.__dict__["forward"] = stand_in
            hooks.callback(_restore, block, own)
        yield


def _restore(block: nn.Module, own: dict[str, Any]) -> None:
    del block.__dict__["forward"]
    if "forward" in own:
        block.__dict__["forward"] = own["forward"]


def _read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a block."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def _tuple_length(output: Any) -> int | None:
    """How many things a block returned, if it did so in a tuple."""
    return len(output) if isinstance(output, tuple) else None


def _equal(one: Any, other: Any) -> bool:
    """Equal, whatever it is made of; what cannot be looked into is equal to itself only."""
    match one, other:
        case Tensor(), Tensor():
            return one.shape == other.shape and torch.equal(one, other)
        case (list() | tuple(), list() | tuple()):
            return len(one) == len(other) and all(map(_equal, one, other))
        case dict(), dict():
            return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
        case Call(), Call():
            return _equal((one.args, one.kwargs), (other.args, other.kwargs))
    return one is other or bool(one == other)


class Stream:
    """A model that runs over all batches block by block, or as a whole if the blocks cannot be run apart.

    Masks, position embeddings and T5's position bias do not depend on the linear layers of a stack, so `enter` captures
    them once. One set of hidden states is kept: the inputs of the present block.

    Args:
        lm: the model.
        batches: batches on its device.
    """

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
            hidden, calls = capture_inputs(self.lm, blocks, batch, needed)
            self._hidden.append(hidden)
            self._calls.append(calls)
        return True

    @torch.no_grad()
    def run(self, number: int, blocks: int = 1) -> Tensor:
        """The block where the stream stands, and those behind it up to so many, on batch `number`: the last output."""
        hidden = self._hidden[number]
        for at in range(self._at, self._at + blocks):
            hidden = hidden_states_of(self._calls[number][at].run(self._blocks[at], hidden))
        return hidden

    def advance(self) -> None:
        """Go on to the next block, with the outputs of this one as it is now."""
        with self.decode_codes():
            for number in range(len(self.batches)):
                self._hidden[number] = self.run(number)
        self._at += 1

    @contextmanager
    def decode_codes(self) -> Iterator[None]:
        """Within the context the matrices of codes in the block where the stream stands are decoded once, not for every
        batch; none of them may be replaced meanwhile."""
        with ExitStack() as decoders:
            for module in self._blocks[self._at].modules():
                if isinstance(module, PackedCodes):
                    decoders.enter_context(module.keep_decoded())
            yield

    @torch.no_grad()
    def run_whole(self, number: int) -> None:
        """The whole model on batch `number`."""
        predict(self.lm, self.batches[number])
