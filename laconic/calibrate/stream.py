"""Run the blocks of a model one after another over all batches.

The hidden states of all batches are kept at one place, the inputs of the current block: in memory, or in files if the
weights of the model are on loan (`LanguageModel.on_loan`). Of several processes, each has a folder for those of its own
batches. A stack that has run to its end is not run again: whatever follows it (a decoder, the head) runs with stand-ins
in place of its blocks, the last of which returns what the stack returned.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from laconic.calibrate.block_calls import (
    BlocksToRun,
    Call,
    blocks_to_run,
    capture_inputs,
    hidden_states_of,
    skip_blocks,
)
from laconic.calibrate.spill import HiddenStates, own_folder
from laconic.errors import UserError
from laconic.formats import PackedCodes
from laconic.formats.packed_stack import PackedStack
from laconic.model import Batch, LanguageModel, Predictions, predict
from laconic.processes import all_true

STATES = "states"
"""The folder of the files of hidden states, in the scratch folder of a streamed model."""


@dataclass(frozen=True)
class FinishedStack:
    """A stack whose blocks have run on all batches.

    Args:
        blocks: its blocks.
        needed: the form of their outputs.
        states: the hidden states that the last block returned.
    """

    blocks: Sequence[nn.Module]
    needed: BlocksToRun
    states: HiddenStates


class Stream:
    """Runs a model over all batches block by block, or as a whole if its blocks do not form a chain.

    `enter` captures the masks and positions of all blocks once. `advance` runs the current block on all batches, and
    makes the next block the current one.

    Args:
        lm: the model.
        batches: batches on its device.
        replays: replay stacks that have run to their end, in place of running them again.
        keeps_inputs: prepare a backward pass: keep the inputs of all blocks of a stack, and the graph from the ends of
            finished stacks (`ends`, by batch) to the arguments of its blocks.
        folder: the folder of the files of hidden states, in the scratch folder of the model.
    """

    def __init__(
        self,
        lm: LanguageModel,
        batches: Sequence[Batch],
        *,
        replays: bool = False,
        keeps_inputs: bool = False,
        folder: str = STATES,
    ) -> None:
        self.lm, self.batches, self._folder = lm, batches, folder
        self.finished: list[FinishedStack] = []
        self.ends: list[list[Tensor]] = []
        self.calls: list[list[Call]] = []
        self.inputs: dict[int, HiddenStates] = {}
        """The inputs of blocks by their number, and the outputs of the last block."""
        self._replays, self._keeps_inputs = replays, keeps_inputs
        self._paths: Sequence[str] = []
        self._blocks: list[nn.Module] = []
        self._needed = BlocksToRun(0, None)
        self._at = 0

    @torch.no_grad()
    def enter(self, paths: Sequence[str], start: int = 0, found: Mapping[int, HiddenStates] | None = None) -> bool:
        """Make the first block of a stack the current one.

        Args:
            paths: the paths of the blocks of the stack.
            start: the number of the block that becomes the current one instead; `found` has its inputs.
            found: inputs of blocks that an earlier run completed (`find_inputs`), by number; None if there are none.

        Returns:
            False if the blocks do not form a chain. The model then runs as a whole.
        """
        self._paths, self._at = paths, start
        self._blocks = [self.lm.model.get_submodule(path) for path in paths]
        self._forget_stack()
        self.calls = []
        needed = self._blocks_to_run()
        if needed is None or (self._replays and needed.count == len(self._blocks) > 1):
            return False
        self._needed = needed
        self.inputs = dict(found or {})
        if not start:
            # Not those of an earlier call, after which layers before the blocks may have been replaced.
            self.inputs[0] = self.new_states(self._places[0])
        self.ends = []
        with self.lm.loaned_on_call(keep=True), torch.set_grad_enabled(self._keeps_inputs):
            for number in range(len(self.batches)):
                self.ends.append([stack.states[number].detach() for stack in self.finished])
                for end in self.ends[-1] if self._keeps_inputs else ():
                    end.requires_grad_()
                hidden, calls = self.capture(number, self.ends[-1])
                if not start:
                    self.inputs[0].append(hidden.detach())
                self.calls.append(calls)
        if not start:
            self.inputs[0].complete()
        self._finish_stack()
        return True

    def _blocks_to_run(self) -> BlocksToRun | None:
        """The blocks that must run to capture the arguments of all; None if the blocks do not form a chain."""
        if not self.batches:
            # A process without batches captures nothing.
            return BlocksToRun(0, None)
        with self.lm.loaned_on_call(), self.replaying(0, rows=1):
            return blocks_to_run(self.lm, self._blocks, self.batches[0])

    def find_inputs(self, paths: Sequence[str], number: int) -> HiddenStates | None:
        """The inputs of a block that an earlier run completed; None if there are none.

        Args:
            paths: the paths of the blocks of a stack.
            number: the number of the block; for the number of blocks, the outputs of the last one.
        """
        return self.open_states(_places(paths)[number])

    def capture(self, number: int, ends: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Call]]:
        """Run the model up to the last block of the current stack, without its blocks.

        Args:
            number: number of the batch.
            ends: the hidden states after each finished stack; None for those that were kept.

        Returns:
            The hidden states that enter the first block, and the other arguments of each block.
        """
        with self.replaying(number, ends):
            return capture_inputs(self.lm, self._blocks, self.batches[number], self._needed)

    @torch.no_grad()
    def run(self, number: int, blocks: int = 1) -> Tensor:
        """Run some blocks on one batch, without advancing.

        Args:
            number: number of the batch.
            blocks: how many blocks to run, beginning with the current one.

        Returns:
            The hidden states after the last of them.
        """
        hidden = self.inputs[self._at][number]
        for at in range(self._at, self._at + blocks):
            hidden = hidden_states_of(self.calls[number][at].run(self._blocks[at], hidden))
        return hidden

    def advance(self) -> None:
        """Run the current block on all batches, and make the next block the current one."""
        with self.lm.on_loan(self._paths[self._at]), self.decode_codes():
            states = self.next_states()
            for number in range(len(self.batches)):
                self.run_once(number, states)
        self.move_to(states)

    def run_once(self, number: int, states: HiddenStates) -> None:
        """Run the current block on one batch for the last time, and append its output to `states`."""
        states.append(self.run(number))
        if not self._keeps_inputs:
            self.inputs[self._at].forget(number)

    def next_states(self) -> HiddenStates:
        """New hidden states for the outputs of the current block."""
        return self.new_states(self._places[self._at + 1])

    def move_to(self, states: HiddenStates) -> None:
        """Make the next block the current one.

        Args:
            states: the outputs of the current block, for all batches.
        """
        states.complete()
        if not self._keeps_inputs:
            # The inputs of the block before are kept, for a run that goes on after it was killed in this block.
            for number in [number for number in self.inputs if number < self._at]:
                self.inputs.pop(number).delete()
        self._at += 1
        self.inputs[self._at] = states
        self._finish_stack()

    def new_states(self, name: str) -> HiddenStates:
        """Empty hidden states: in a file if the weights of the model are on loan.

        Args:
            name: the name of the file.
        """
        return HiddenStates(self._file(name), self.lm.device)

    def open_states(self, name: str) -> HiddenStates | None:
        """The hidden states that an earlier run completed; None if there are none, or if they are damaged.

        Processes go on at the same place, so there are none either if those of another process are missing.
        """
        file = self._file(name)
        states = None if file is None else HiddenStates.open(file, self.lm.device)
        is_whole = states is not None and len(states) == len(self.batches)
        return states if all_true(is_whole) else None

    def delete_states(self) -> None:
        """Delete all files of hidden states of this process, also those of an earlier run."""
        if self.lm.loans is not None:
            shutil.rmtree(self.lm.loans.scratch / self._folder / own_folder(), ignore_errors=True)

    def _finish_stack(self) -> None:
        """Replay the stack from now on, if its outputs are known."""
        end = self.inputs.get(len(self._blocks))
        if end is not None:
            self._forget_stack()
            self.finished.append(FinishedStack(self._blocks, self._needed, end))

    def _forget_stack(self) -> None:
        self.finished = [stack for stack in self.finished if stack.blocks[0] is not self._blocks[0]]

    def _file(self, name: str) -> Path | None:
        return None if self.lm.loans is None else self.lm.loans.scratch / self._folder / own_folder() / name

    @property
    def _places(self) -> list[str]:
        """The names of the inputs of each block, and of the outputs of the last."""
        return _places(self._paths)

    @contextmanager
    def decode_codes(self) -> Iterator[None]:
        """Within the context the quantized matrices of the current block are decoded once, not for every batch.

        No layer of the block may be replaced within the context.
        """
        with ExitStack() as decoders:
            for module in self._blocks[self._at].modules():
                if isinstance(module, (PackedCodes, PackedStack)):
                    decoders.enter_context(module.keep_decoded())
            yield

    @torch.no_grad()
    def run_whole(self, number: int) -> None:
        """Run the whole model on batch `number`."""
        predict(self.lm, self.batches[number])

    def run_end(self, number: int, ends: Sequence[Tensor] | None = None) -> Predictions:
        """Run the part of the model after all stacks on batch `number`, and return its predictions.

        Args:
            number: number of the batch.
            ends: the hidden states after each stack; None for those that were kept.
        """
        with self.replaying(number, ends):
            return predict(self.lm, self.batches[number])[0]

    @contextmanager
    def replaying(self, number: int, ends: Sequence[Tensor] | None = None, rows: int | None = None) -> Iterator[None]:
        """Within the context the finished stacks return their hidden states: `ends`, or those of the first `rows`."""
        finished = self.finished if self._replays else []
        if ends is None or not finished:
            ends = [stack.states[number][:rows] for stack in finished]
        with ExitStack() as stand_ins:
            for stack, end in zip(finished[: len(ends)], ends, strict=True):
                stand_ins.enter_context(skip_blocks(stack.blocks, replace(stack.needed, count=0), end))
            yield


def chain_error(verb: str, paths: Sequence[str]) -> UserError:
    """The error for blocks that do not form a chain, for which `Stream.enter` returns False.

    Args:
        verb: what was to be done block by block, such as "measured".
        paths: the paths of the blocks of the stack.
    """
    return UserError(
        f"The model cannot be {verb} block by block: the blocks '{paths[0]}' to '{paths[-1]}' pass each other more "
        "than hidden states, or run in another order; leave out stream."
    )


def _places(paths: Sequence[str]) -> list[str]:
    return [*paths, f"{paths[-1]}.end"]
