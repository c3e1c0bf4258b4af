"""Capture the arguments of the blocks of a model, and let a model run without its blocks.

Each model class passes its own arguments (masks, position embeddings) to its blocks. To learn them, the model runs once
for each batch up to the last block, and the arguments of every block are captured. Blocks are replaced by an identity
in this run if the arguments do not depend on their outputs. T5 computes its position bias in the first block, so that
block runs; if the arguments depend on further blocks, all blocks run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from laconic.calibrate.activation_capture import RunEnded
from laconic.model import Batch, LanguageModel, predict
from laconic.model.forward import replacing_forward


@dataclass(frozen=True)
class Call:
    """The arguments of one block for one batch, without the hidden states.

    Args:
        args: positional arguments; None in place of the hidden states and of caches.
        kwargs: keyword arguments, likewise.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def from_arguments(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """Build a `Call` from the arguments that a forward hook received."""
        hidden = _read(args, kwargs)
        # With a cache, a second run would append the keys of every token again.
        kept = [None if isinstance(value, Cache) or value is hidden else value for value in (*args, *kwargs.values())]
        return cls(tuple(kept[: len(args)]), dict(zip(kwargs, kept[len(args) :], strict=True)))

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        """Call `block` with these arguments and the given hidden states, and return its output."""
        if "hidden_states" in self.kwargs:
            return block(*self.args, **{**self.kwargs, "hidden_states": hidden})
        return block(hidden, *self.args[1:], **self.kwargs)

    def with_leaves(self) -> tuple["Call", list[Tensor], list[Tensor]]:
        """Detach the arguments that need gradients.

        Returns:
            A call with leaves of the graph in their place, these arguments, and the leaves.
        """
        arguments: list[Tensor] = []
        leaves: list[Tensor] = []

        def detach(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            arguments.append(value)
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]

        args = tuple(detach(value) for value in self.args)
        return Call(args, {name: detach(value) for name, value in self.kwargs.items()}), arguments, leaves


def hidden_states_of(output: Any) -> Tensor:
    """Return the hidden states in the output of a block: the output itself, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def capture_inputs(
    lm: LanguageModel, blocks: Sequence[nn.Module], batch: Batch, needed: "BlocksToRun"
) -> tuple[Tensor, list[Call]]:
    """Capture the arguments of all blocks of a stack for one batch.

    Args:
        lm: the model.
        blocks: the blocks of the stack, in the order in which they run.
        batch: the batch, on the model's device.
        needed: which blocks must really run, from `blocks_to_run`.

    Returns:
        The hidden states that enter the first block, and the other arguments of each block.

    Raises:
        ModelRunError: the model cannot run the batch.
    """
    entering: list[Tensor] = []
    calls: list[Call] = []

    def on_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(_read(args, kwargs))
        calls.append(Call.from_arguments(args, kwargs))
        del entering[1:]
        if block is blocks[-1]:
            raise RunEnded

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(on_call, with_kwargs=True).remove)
        hooks.enter_context(skip_blocks(blocks, needed))
        with suppress(RunEnded):
            predict(lm, batch)
    return entering[0], calls


@dataclass(frozen=True)
class BlocksToRun:
    """The blocks that must run so that the arguments of all blocks are captured correctly.

    Args:
        count: number of blocks, from the first, that must run.
        form: output of a block; blocks that do not run return a tuple of the same form.
    """

    count: int
    form: Any


@torch.no_grad()
def blocks_to_run(lm: LanguageModel, blocks: Sequence[nn.Module], batch: Batch) -> BlocksToRun | None:
    """Find the smallest number of blocks that must run so that all blocks get the same arguments as in a full run.

    Args:
        lm: the model.
        blocks: the blocks of one stack.
        batch: a batch; only its first row is used.

    Returns:
        None if the blocks do not form a chain, in which each runs once and reads the output of the one before it.
    """
    row = {name: tensor[:1] for name, tensor in batch.items()}
    full_run = _record_calls(lm, blocks, row)
    if full_run is None:
        return None
    calls, outputs = full_run
    if len({_tuple_length(output) for output in outputs}) == 1:
        # If a block returns more than hidden states, the first block may compute an argument of the others.
        for count in (0, 1) if _tuple_length(outputs[0]) in (None, 1) else (1,):
            needed = BlocksToRun(count, outputs[0])
            if count < len(blocks) and _equal(capture_inputs(lm, blocks, row, needed)[1], calls):
                return needed
    return BlocksToRun(len(blocks), None)


def _record_calls(lm: LanguageModel, blocks: Sequence[nn.Module], row: Batch) -> tuple[list[Call], list[Any]] | None:
    """Arguments and outputs of each block in a run of the whole model; None if the blocks do not form a chain."""
    order: list[nn.Module] = []
    calls: list[Call] = []
    outputs: list[Any] = []
    follows: list[bool] = []

    def on_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        order.append(block)
        follows.append(not outputs or torch.equal(_read(args, kwargs), hidden_states_of(outputs[-1])))
        calls.append(Call.from_arguments(args, kwargs))
        outputs.append(output)

    with ExitStack() as hooks:
        for block in set(blocks):
            hooks.callback(block.register_forward_hook(on_call, with_kwargs=True).remove)
        predict(lm, row)
    return (calls, outputs) if order == list(blocks) and all(follows) else None


@contextmanager
def skip_blocks(blocks: Sequence[nn.Module], needed: BlocksToRun, last: Tensor | None = None) -> Iterator[None]:
    """Within the context the blocks that need not run return their input.

    Args:
        blocks: the blocks of a stack, in the order in which they run.
        needed: the blocks that run.
        last: the hidden states that the last block returns; None for its input.
    """
    form = [needed.form]

    def stand_in_for(block: nn.Module) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            hidden = last if last is not None and block is blocks[-1] else _read(args, kwargs)
            return (hidden, *form[0][1:]) if isinstance(form[0], tuple) else hidden

        return stand_in

    def on_return(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        form[0] = output

    with ExitStack() as hooks:
        for block in blocks[: needed.count]:
            hooks.callback(block.register_forward_hook(on_return).remove)
        for block in blocks[needed.count :]:
            hooks.enter_context(replacing_forward(block, stand_in_for(block)))
        yield


def _read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a block."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def _tuple_length(output: Any) -> int | None:
    """Length of a block's output if it is a tuple; else None."""
    return len(output) if isinstance(output, tuple) else None


def _equal(first: Any, second: Any) -> bool:
    """Whether two arguments are equal; containers and tensors are compared by value."""
    match first, second:
        case Tensor(), Tensor():
            return first.shape == second.shape and torch.equal(first, second)
        case (list() | tuple(), list() | tuple()):
            return len(first) == len(second) and all(map(_equal, first, second))
        case dict(), dict():
            return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
        case Call(), Call():
            return _equal((first.args, first.kwargs), (second.args, second.kwargs))
    return first is second or bool(first == second)
