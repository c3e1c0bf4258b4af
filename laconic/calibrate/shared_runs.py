"""Run several copies of a model over the same batches block by block; shared blocks run once.

The copies differ in some parts: one has all blocks compressed, another one all but one. Up to the first part in which
two of them differ, they have the same hidden states. At each block, copies with the same hidden states and the same
tensors in the block therefore run as one. The weights of a block are read once for all copies that have them.

Hidden states are in memory, or in files for a streamed model. A run that was killed goes on at the block it was at.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from laconic.calibrate.block_calls import (
    BlocksToRun,
    Call,
    blocks_to_run,
    capture_inputs,
    hidden_states_of,
    skip_blocks,
)
from laconic.calibrate.spill import HiddenStates, own_folder
from laconic.calibrate.stream import chain_error
from laconic.formats import PackedCodes
from laconic.formats.packed_stack import PackedStack
from laconic.model import Batch, LanguageModel
from laconic.model.loans_origins import tensors_below
from laconic.processes import all_true
from laconic.progress import Track, silent

ALL = slice(None)
"""All rows of a batch."""
Leaders = tuple[int, ...]
"""For each model, the number of the first model that is equal to it up to some place."""


class SharedRuns:
    """Runs the blocks of several models over all batches, and keeps the hidden states after each stack.

    Args:
        models: copies of one model, no part of which is on loan.
        batches: the batches of this process, on the device of the models.
        folder: the folder of the files of hidden states, in which each process has its own; None keeps them in memory.
        track: shows progress.

    Raises:
        UserError: the blocks do not form a chain, or hidden states cannot be written.
    """

    def __init__(
        self,
        models: Sequence[LanguageModel],
        batches: Sequence[Batch],
        folder: Path | None = None,
        track: Track = silent,
    ) -> None:
        self.models, self._batches = models, batches
        self._folder = None if folder is None else folder / own_folder()
        self._stacks = [[path for path, _ in blocks] for _, blocks in models[0].stacks()]
        self._needed: list[BlocksToRun] = []
        self._leaders = self._find_leaders()
        # By the number of the stack, that of the block (or the number of blocks), and the leader.
        self._states: dict[tuple[int, int, int], HiddenStates] = {}
        for stack in range(len(self._stacks)):
            self._run_stack(stack, track)

    @contextmanager
    def replaying(self, model: LanguageModel, number: int, rows: slice) -> Iterator[None]:
        """A context in which the stacks of a model return their hidden states for some rows, without running.

        Args:
            model: one of the models.
            number: the number of the batch.
            rows: the rows of the batch.
        """
        position = next(position for position, other in enumerate(self.models) if other is model)
        with self._replaying(position, number, len(self._stacks), rows):
            yield

    def _find_leaders(self) -> list[list[Leaders]]:
        """By stack, the leaders before each block, and after the last one."""
        inside = tuple(f"{path}." for paths in self._stacks for path in paths)
        outside = [_outside(model, inside) for model in self.models]
        present = _refine((0,) * len(self.models), outside)
        found: list[list[Leaders]] = []
        for paths in self._stacks:
            found.append([present])
            for path in paths:
                present = _refine(present, [self._tensors(number, path) for number in range(len(self.models))])
                found[-1].append(present)
        return found

    def _tensors(self, model: int, path: str) -> tuple[int, ...]:
        """The identities of the tensors of a block, which models share where it is the same."""
        return tuple(id(tensor) for _, _, tensor in tensors_below(self.models[model].model.get_submodule(path)))

    @torch.no_grad()
    def _run_stack(self, stack: int, track: Track) -> None:
        paths = self._stacks[stack]
        needed = self._blocks_to_run(stack)
        if needed is None or needed.count == len(paths) > 1:
            raise chain_error("measured", paths)
        self._needed.append(needed)
        start = self._find_start(stack)
        if start is None:
            self._enter(stack)
        for block, path in track(list(enumerate(paths))[start or 0 :], "Measuring the blocks of copies"):
            self._run_block(stack, block, path)

    def _blocks_to_run(self, stack: int) -> BlocksToRun | None:
        """The blocks that must run to capture the arguments of all; None if the blocks do not form a chain."""
        if not self._batches:
            # A process without batches captures nothing.
            return BlocksToRun(0, None)
        first = self.models[0]
        blocks = [first.model.get_submodule(path) for path in self._stacks[stack]]
        with first.loaned_on_call(), self._replaying(0, 0, stack, slice(1)):
            return blocks_to_run(first, blocks, self._batches[0])

    def _enter(self, stack: int) -> None:
        """Keep the hidden states before the first block."""
        for leader in dict.fromkeys(self._leaders[stack][0]):
            states = self._new_states(stack, 0, leader)
            with self.models[leader].loaned_on_call(keep=True):
                for number in range(len(self._batches)):
                    states.append(self._capture(stack, leader, number)[0])
            states.complete()

    def _run_block(self, stack: int, block: int, path: str) -> None:
        """Run a block on all hidden states before it that are needed after it."""
        before, after, outside = (self._leaders[stack][place] for place in (block, block + 1, 0))
        missing = [leader for leader in dict.fromkeys(after) if not self._find_states(stack, block + 1, leader)]
        by_version: dict[tuple[int, ...], list[int]] = {}
        for leader in missing:
            by_version.setdefault(self._tensors(leader, path), []).append(leader)
        for leaders in by_version.values():
            states = {leader: self._new_states(stack, block + 1, leader) for leader in leaders}
            model = self.models[leaders[0]]
            with ExitStack() as loans:
                # The first block of some classes computes an argument of all others, and runs again for it.
                for other in dict.fromkeys(outside[leader] for leader in leaders):
                    loans.enter_context(self.models[other].loaned_on_call(keep=True))
                loans.enter_context(model.on_loan(path))
                module = model.model.get_submodule(path)
                for part in module.modules():
                    if isinstance(part, (PackedCodes, PackedStack)):
                        loans.enter_context(part.keep_decoded())
                for number in range(len(self._batches)):
                    calls: dict[int, Call] = {}
                    for leader in leaders:
                        other = outside[leader]
                        if other not in calls:
                            calls[other] = self._capture(stack, other, number)[1][block]
                        hidden = self._states[stack, block, before[leader]][number]
                        states[leader].append(hidden_states_of(calls[other].run(module, hidden)))
            for found in states.values():
                found.complete()
        for leader in dict.fromkeys(before):
            states_before = self._states.pop((stack, block, leader), None)
            if states_before is not None:
                states_before.delete()

    def _capture(self, stack: int, leader: int, number: int) -> tuple[Tensor, list[Call]]:
        """The hidden states before the blocks of a stack, and the other arguments of each of them."""
        model = self.models[leader]
        blocks = [model.model.get_submodule(path) for path in self._stacks[stack]]
        with self._replaying(leader, number, stack):
            return capture_inputs(model, blocks, self._batches[number], self._needed[stack])

    @contextmanager
    def _replaying(self, model: int, number: int, stacks: int, rows: slice = ALL) -> Iterator[None]:
        """A context in which the first `stacks` stacks of a model return the hidden states of a batch, or some rows."""
        with ExitStack() as stand_ins:
            for stack in range(stacks):
                paths = self._stacks[stack]
                blocks = [self.models[model].model.get_submodule(path) for path in paths]
                states = self._states[stack, len(paths), self._leaders[stack][-1][model]]
                needed = replace(self._needed[stack], count=0)
                stand_ins.enter_context(skip_blocks(blocks, needed, states[number][rows]))
            yield

    def _find_start(self, stack: int) -> int | None:
        """The number of the block at which an earlier run stopped; None if it left no hidden states of the stack."""
        leaders = self._leaders[stack]
        for block in reversed(range(len(leaders))):
            # Hidden states are deleted when those after the block are complete for all models.
            if all(self._find_states(stack, block, leader) for leader in dict.fromkeys(leaders[block])):
                return block
        return None

    def _find_states(self, stack: int, block: int, leader: int) -> bool:
        """Whether the hidden states at a place are there; those of an earlier run are opened."""
        key = (stack, block, leader)
        file = self._file(*key)
        if key not in self._states and file is not None:
            states = HiddenStates.open(file, self.models[0].device)
            # All processes go on at the same place.
            if all_true(states is not None and len(states) == len(self._batches)) and states is not None:
                self._states[key] = states
        return key in self._states

    def _new_states(self, stack: int, block: int, leader: int) -> HiddenStates:
        states = HiddenStates(self._file(stack, block, leader), self.models[0].device)
        self._states[stack, block, leader] = states
        return states

    def _file(self, stack: int, block: int, leader: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{stack}.{block}.{leader}"


def _outside(model: LanguageModel, inside: tuple[str, ...]) -> tuple[int, ...]:
    """The identities of the tensors outside the blocks, whose paths `inside` has with a dot at the end."""
    modules = [module for name, module in model.model.named_modules() if not f"{name}.".startswith(inside)]
    return tuple(
        id(tensor)
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )


def _refine(leaders: Leaders, parts: Sequence[tuple[int, ...]]) -> Leaders:
    """The leaders after one more part, which has the given tensors in each model."""
    first: dict[tuple[object, ...], int] = {}
    return tuple(first.setdefault((leader, parts[number]), number) for number, leader in enumerate(leaders))
