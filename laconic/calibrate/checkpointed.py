"""Gradients block by block: a forward pass stores the input of every block, a backward pass runs each block again.

T. Chen, B. Xu, C. Zhang, C. Guestrin, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. The graph of
one block on one batch is in memory at a time. The losses are those of `collect_stats`, with the same random draws.

The blocks of a decoder also read the end of the encoder, as an argument that all of them share. Its gradients are
summed over the blocks, and passed on to the encoder after the first block of the decoder.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from laconic.calibrate.block_calls import Call, hidden_states_of
from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.end_gradients import Gradients, append_gradient, differentiate_end, take_gradient
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.sequential import LayerProblems
from laconic.calibrate.spill import HiddenStates
from laconic.errors import UserError


@dataclass(frozen=True)
class _Stack:
    """A stack after the forward pass.

    Args:
        paths: the paths of its blocks.
        inputs: the hidden states that enter each block, and those after the last.
        calls: the other arguments of each block, by batch.
    """

    paths: Sequence[str]
    inputs: Sequence[HiddenStates]
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


class BackwardPass(BlockwisePass):
    """A forward and a backward pass, for statistics of gradients, and of inputs in the same run."""

    keeps_inputs = True

    def problems(self) -> Iterator[LayerProblems]:
        """Yield the layers with their problems, as `blockwise_calibrate` does."""
        self._finished: list[_Stack] = []
        self._predictions: list[int] = []
        if not self.is_needed():
            return
        for paths in self.stacks:
            # The inputs of all blocks are complete if one of the blocks is done.
            start = len(paths) if self.done & set(paths) else 0
            self.enter(paths, start)
            for _ in self.data.track(paths[start:], "Running the blocks"):
                self.stream.advance()
            self._finished.append(_Stack(paths, self.stream.inputs, self.stream.calls))
        if self.first and len(self.stacks) > 1:
            raise UserError(
                f"The gradients of '{self.first[0].name}' cannot be measured block by block, because it lies before "
                "both stacks of an encoder-decoder; leave it out of the targets, or leave out stream."
            )
        last = Recorder(self.lm, self.last, self.needs)
        ends = [stack.inputs[-1] for stack in self._finished]
        gradients, self._predictions = differentiate_end(self, ends, last)
        for number in reversed(range(len(self.stacks))):
            shared = [_Shared() for _ in self.batches]
            gradients = yield from self._backward(self._finished[number], gradients, shared)
            if number:
                gradients = self._pass_on(number, shared)
        yield from self.problems_outside(self.last, last)
        if self.first:
            yield from self.problems_outside(self.first, self._differentiate_start(gradients))

    def is_needed(self) -> bool:
        """Whether anything is left to measure."""
        return bool(self.outside) or any(self.sites_in(path) for paths in self.stacks for path in paths)

    def recorder_of(self, path: str) -> Recorder:
        """The recorder of the block at `path`, for its second run and its backward pass."""
        return Recorder(self.lm, self.sites_in(path), self.needs)

    def _backward(
        self, stack: _Stack, gradients: Gradients, shared: Sequence[_Shared]
    ) -> Generator[LayerProblems, None, Gradients]:
        """Go through the blocks of a stack from the last to the first, and yield their layers.

        Args:
            stack: the stack.
            gradients: the gradients at its end.
            shared: gets the gradients at arguments that come from an earlier stack, by batch.

        Returns:
            The gradients at its beginning.
        """
        places = list(enumerate(stack.paths))[::-1]
        if self.done & set(stack.paths):
            places = [(at, path) for at, path in places if path not in self.done]
            gradients = self._found_gradients(stack, len(places))
        for at, path in self.data.track(places, "Measuring and compressing the blocks"):
            earlier: Gradients = []
            with self.lm.on_loan(path):
                with self.recorder_of(path) as recorder:
                    for number, batch in enumerate(self.batches):
                        recorder.start(batch)
                        hidden = stack.inputs[at][number].detach().requires_grad_()
                        call, arguments, leaves = stack.calls[number][at].with_leaves()
                        with torch.enable_grad():
                            output = hidden_states_of(call.run(self.lm.model.get_submodule(path), hidden))
                        for order, states in enumerate(gradients):
                            # Not autograd.grad, because some layers (of DeBERTa) do not read the hidden states.
                            output.backward(states[number], retain_graph=order + 1 < len(gradients))
                            gradient, *others = (take_gradient(leaf) for leaf in (hidden, *leaves))
                            append_gradient(self.stream, earlier, order, gradient, path)
                            shared[number].add(order, arguments, others)
                        recorder.count_predictions(self._predictions[number])
                for states in earlier:
                    states.complete()
                yield from self.problems_in(path, recorder)
                for states in (*gradients, *(stack.inputs[at + 1 : -1][:1])):
                    states.delete()
                gradients = earlier
        return gradients

    def _found_gradients(self, stack: _Stack, at: int) -> Gradients:
        """The gradients at the inputs of block `at`, which an earlier run completed."""
        gradients: Gradients = []
        while (states := self.stream.open_states(f"gradients.{stack.paths[at]}.{len(gradients)}")) is not None:
            gradients.append(states)
        return gradients

    def _pass_on(self, number: int, shared: Sequence[_Shared]) -> Gradients:
        """The gradients at the end of the stack before stack `number`, from those at the arguments that it shares."""
        gradients: Gradients = []
        for batch, arguments in enumerate(shared):
            tensors = list(arguments.arguments.values())
            for order, sums in arguments.gradients.items():
                found = [sums[id(tensor)] for tensor in tensors]
                end = self.stream.ends[batch][number - 1]
                (gradient,) = torch.autograd.grad(tensors, end, found, retain_graph=True)
                append_gradient(self.stream, gradients, order, gradient, f"end.{number}")
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
                for order, states in enumerate(gradients):
                    hidden.backward(states[number], retain_graph=order + 1 < len(gradients))
                recorder.count_predictions(self._predictions[number])
        return recorder
