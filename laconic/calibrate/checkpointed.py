"""Gradients block by block: a forward pass stores the input of every block, a backward pass runs each block again.

T. Chen, B. Xu, C. Zhang, C. Guestrin, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. The graph of
one block on one batch is in memory at a time. The losses are those of `collect_stats`, with the same random draws.

The blocks of a decoder also read the end of the encoder, as an argument that all of them share. Its gradients are
summed over the blocks, and passed on to the encoder after the first block of the decoder.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from laconic.calibrate.block_calls import Call, hidden_states_of
from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.end_gradients import Gradients, differentiate_end, read_counts, take_gradient
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.sequential import LayerProblems
from laconic.calibrate.spill import HiddenStates


@dataclass(frozen=True)
class _Stack:
    """A stack after the forward pass.

    Args:
        paths: the paths of its blocks.
        inputs: the hidden states that enter each block, and those after the last, by number.
        calls: the other arguments of each block, by batch.
    """

    paths: Sequence[str]
    inputs: Mapping[int, HiddenStates]
    calls: Sequence[Sequence[Call]]


@dataclass
class _Shared:
    """The arguments that the blocks of a decoder share with the encoder, for one batch, and their gradients.

    Args:
        gradients: the sum over blocks, by loss and by the identity of the argument.
        arguments: the arguments, by identity.
    """

    gradients: dict[int, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    arguments: dict[int, Tensor] = field(default_factory=dict)

    def add(self, loss: int, arguments: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Add the gradients of one loss at the arguments of one block."""
        for argument, gradient in zip(arguments, gradients, strict=True):
            self.arguments[id(argument)] = argument
            sums = self.gradients[loss]
            sums[id(argument)] = gradient if id(argument) not in sums else sums[id(argument)] + gradient


@dataclass(frozen=True)
class _Beginning:
    """The place at which the backward pass begins.

    Args:
        stack: the number of the stack.
        block: the number of the block at whose inputs it begins; the number of blocks for the end of the stack.
        gradients: the gradients there, from an earlier run; None to differentiate the end of the model.
        counts: the number of predictions of each batch, if there are gradients.
    """

    stack: int
    block: int
    gradients: Gradients | None = None
    counts: Sequence[int] = ()


class BackwardPass(BlockwisePass):
    """A forward and a backward pass, for statistics of gradients, and of inputs in the same run."""

    keeps_inputs = True

    def problems(self) -> Iterator[LayerProblems]:
        """Yield the layers with their problems, as `blockwise_calibrate` does."""
        if self.is_needed():
            yield from self._measure()
        self.take_over_rest()

    def is_needed(self) -> bool:
        """Whether anything is left to measure."""
        return bool(self.unfinished(self.outside)) or any(map(self._has_measured, range(len(self.stacks))))

    def is_measured(self, path: str) -> bool:
        """Whether the block at `path` is to be measured."""
        return bool(self.sites_in(path))

    def recorder_of(self, path: str) -> Recorder:
        """The recorder of the block at `path`, for its second run and its backward pass."""
        return Recorder(self.lm, self.sites_in(path), self.needs)

    def _measure(self) -> Iterator[LayerProblems]:
        begin = self._find_beginning()
        stacks = [self._run_forward(number, begin) for number in range(len(self.stacks))]
        if self.first and len(self.stacks) > 1:
            raise self.embedding_error(with_gradients=True)
        last = Recorder(self.lm, self.last, self.needs)
        gradients, self._predictions = begin.gradients, list(begin.counts)
        if gradients is None or self.unfinished(self.last):
            ends = [stack.inputs[len(stack.paths)] for stack in stacks]
            end, self._predictions = differentiate_end(self, ends, last, self._place_of(len(stacks) - 1))
            gradients = end if gradients is None else gradients
        for number in reversed(range(begin.stack + 1)):
            shared = [_Shared() for _ in self.batches]
            bottom = self._bottom(number, bool(self.unfinished(self.first)))
            top = begin.block if number == begin.stack else len(stacks[number].paths)
            gradients = yield from self._backward(stacks[number], range(bottom, top), gradients, shared)
            if any(map(self._has_measured, range(number))):
                gradients = self._pass_on(number, shared)
        if self.unfinished(self.last):
            yield from self.problems_outside(self.last, last)
        if self.unfinished(self.first):
            yield from self.problems_outside(self.first, self._differentiate_start(gradients))

    def _has_measured(self, number: int) -> bool:
        """Whether a stack has a block that is to be measured."""
        return any(map(self.is_measured, self.stacks[number]))

    def _bottom(self, number: int, start: bool) -> int:
        """The last block of a stack that the backward pass reaches; the number of blocks if it reaches none.

        Args:
            number: the number of the stack.
            start: go to the start of the model.
        """
        paths = self.stacks[number]
        if start or any(map(self._has_measured, range(number))):
            return 0
        return next((at for at, path in enumerate(paths) if self.is_measured(path)), len(paths))

    def _place_of(self, number: int, block: int | None = None) -> str:
        """The name of the gradients at the inputs of a block, or at the end of a stack."""
        return f"gradients.end.{number}" if block is None else f"gradients.{self.stacks[number][block]}"

    def _find_beginning(self) -> _Beginning:
        """Find the gradients of an earlier run that are nearest to the blocks that are left to measure."""
        last, counts = len(self.stacks) - 1, read_counts(self.stream)
        highest = max(filter(self._has_measured, range(last + 1)), default=0)
        for number in range(highest, last + 1) if counts else ():
            paths = self.stacks[number]
            above = max((at + 1 for at, path in enumerate(paths) if self.is_measured(path)), default=0)
            # The gradients at the end of an earlier stack are sums over all blocks of this one.
            within = () if any(map(self._has_measured, range(number))) else range(above, len(paths))
            for block in (*within, None):
                gradients = self.stream.open_states(self._place_of(number, block))
                if gradients is not None:
                    return _Beginning(number, len(paths) if block is None else block, gradients, counts or ())
        return _Beginning(last, len(self.stacks[last]))

    def _run_forward(self, number: int, begin: _Beginning) -> _Stack:
        """Run the blocks of a stack whose inputs the backward pass needs, and that an earlier run has not left."""
        paths, last = self.stacks[number], len(self.stacks) - 1
        runs_end = begin.gradients is None or bool(self.unfinished(self.outside))
        top = len(paths) if number < begin.stack else begin.block if number == begin.stack else 0
        needed = {*range(self._bottom(number, runs_end), top), *((len(paths),) if number < last or runs_end else ())}
        found = {at: states for at in needed if (states := self.stream.find_inputs(paths, at)) is not None}
        missing = needed - found.keys()
        start = 0 if missing else max(found, default=0)
        for at in range(min(missing, default=0), 0, -1):
            states = found.get(at) or self.stream.find_inputs(paths, at)
            if states is not None:
                start, found[at] = at, states
                break
        self.enter(paths, start, found)
        for _ in self.data.track(paths[start : max(missing, default=start)], "Running the blocks"):
            self.stream.advance()
        return _Stack(paths, self.stream.inputs, self.stream.calls)

    def _backward(
        self, stack: _Stack, blocks: range, gradients: Gradients, shared: Sequence[_Shared]
    ) -> Generator[LayerProblems, None, Gradients]:
        """Go through blocks of a stack from the last to the first, and yield their layers.

        Args:
            stack: the stack.
            blocks: the numbers of the blocks.
            gradients: the gradients at the end of the last of them.
            shared: gets the gradients at arguments that come from an earlier stack, by batch.

        Returns:
            The gradients at the beginning of the first of them.
        """
        # A track may measure the time of a block by its path.
        places = [(at, stack.paths[at]) for at in reversed(blocks)]
        for at, path in self.data.track(places, "Measuring and compressing the blocks"):
            earlier = self.stream.new_states(f"gradients.{path}")
            with self.lm.on_loan(path):
                recorder = self._differentiate(stack, at, (gradients, earlier), shared)
                earlier.complete()
                yield from self.problems_in(path, recorder)
            self.take_over(path)
            # The block before needs neither. A stack that has run to its end is replayed.
            gradients.delete()
            stack.inputs[at].delete()
            gradients = earlier
        return gradients

    def _differentiate(
        self, stack: _Stack, at: int, gradients: tuple[Gradients, Gradients], shared: Sequence[_Shared]
    ) -> Recorder:
        """Run a block on loan again on all batches, and pass on the gradients of the losses.

        Args:
            stack: the stack.
            at: the number of the block.
            gradients: those after the block, and an empty list that gets those before it.
            shared: gets the gradients at arguments that come from an earlier stack, by batch.

        Returns:
            The recorder of its layers. No graph is left, which would keep their statistics in memory.
        """
        path, (after, before) = stack.paths[at], gradients
        with self.recorder_of(path) as recorder:
            for number, batch in enumerate(self.batches):
                recorder.start(batch)
                hidden = stack.inputs[at][number].detach().requires_grad_()
                call, arguments, leaves = stack.calls[number][at].with_leaves()
                with torch.enable_grad():
                    output = hidden_states_of(call.run(self.lm.model.get_submodule(path), hidden))
                found: list[Tensor] = []
                losses = after[number]
                for order, gradient in enumerate(losses):
                    # Not autograd.grad, because some layers (of DeBERTa) do not read the hidden states.
                    output.backward(gradient, retain_graph=order + 1 < len(losses))
                    at_input, *others = (take_gradient(leaf) for leaf in (hidden, *leaves))
                    found.append(at_input)
                    shared[number].add(order, arguments, others)
                before.append(torch.stack(found))
                recorder.count_predictions(self._predictions[number])
        return recorder

    def _pass_on(self, number: int, shared: Sequence[_Shared]) -> Gradients:
        """The gradients at the end of the stack before stack `number`, from those at the arguments that it shares."""
        gradients = self.stream.new_states(self._place_of(number - 1))
        for batch, arguments in enumerate(shared):
            tensors = list(arguments.arguments.values())
            end = self.stream.ends[batch][number - 1]
            found: list[Tensor] = []
            for sums in arguments.gradients.values():
                outputs = [sums[id(tensor)] for tensor in tensors]
                found += torch.autograd.grad(tensors, end, outputs, retain_graph=True)
            gradients.append(torch.stack(found))
        gradients.complete()
        return gradients

    def _differentiate_start(self, gradients: Gradients) -> Recorder:
        """Run the start of the model on every batch, and pass on the gradients at the first block."""
        with (
            self.lm.loaned_on_call(keep=True),
            Recorder(self.lm, self.first, self.needs) as recorder,
            torch.enable_grad(),
        ):
            for number, batch in enumerate(self.batches):
                recorder.start(batch)
                hidden, _ = self.stream.capture(number, [])
                losses = gradients[number]
                for order, gradient in enumerate(losses):
                    hidden.backward(gradient, retain_graph=order + 1 < len(losses))
                recorder.count_predictions(self._predictions[number])
        return recorder
