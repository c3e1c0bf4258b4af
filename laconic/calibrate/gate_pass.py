"""Gradients at gates block by block, on a model whose weights are on loan.

A gate is a number that multiplies a part of a block, such as a head, and is 1. It does not change the forward pass, so
only the second run of each block has gates (`laconic.calibrate.checkpointed`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from laconic.calibrate.checkpointed import BackwardPass
from laconic.calibrate.collect_stats import Calibration, check_not_empty, without_weight_gradients
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.model import Batch, LanguageModel
from laconic.processes import all_reduce_sum

Slopes = Sequence[Sequence[Tensor]]
"""For each gate of a block, the gradients of the losses of one batch, in order."""


@dataclass(frozen=True)
class BlockGates:
    """The gates of one block for one batch.

    Args:
        gates: tensors of ones that require gradients.
        apply: makes the context in which they multiply their parts.
        finish: takes the gradients of all losses of the batch.
    """

    gates: Sequence[Tensor]
    apply: Callable[[], AbstractContextManager[None]]
    finish: Callable[[Slopes], None]


MakeGates = Callable[[str, int, Batch], BlockGates]
"""Returns the gates of the block at a path for a batch, given with its number."""


def differentiate_gates(lm: LanguageModel, data: Calibration, make: MakeGates) -> int:
    """Run the batches of this process forward and backward, block by block, and differentiate by the gates of each.

    Args:
        lm: the model.
        data: the calibration data.
        make: makes the gates.

    Returns:
        The number of predictions of all processes.

    Raises:
        UserError: there is no batch, predictions are not finite, or the blocks of a stack do not form a chain.
    """
    check_not_empty(data)
    with evaluating(lm), without_weight_gradients(lm):
        run = _GatePass(lm, data, make)
        for _ in run.problems():
            pass
        run.stream.delete_states()
        return run.predictions


class _GatePass(BackwardPass):
    """Runs every block again with its gates, and measures no layers."""

    def __init__(self, lm: LanguageModel, data: Calibration, make: MakeGates) -> None:
        super().__init__(lm, data, (), (), writes=False)
        self._make = make

    @property
    def predictions(self) -> int:
        """The number of predictions of all batches, over all processes."""
        return int(all_reduce_sum(torch.tensor(sum(self._predictions), device="cpu")))

    def is_measured(self, path: str) -> bool:
        return True

    def recorder_of(self, path: str) -> Recorder:
        return _GateRecorder(self.lm, lambda number, batch: self._make(path, number, batch))


class _GateRecorder(Recorder):
    """Applies the gates of a block to each batch, and collects the gradients of its losses."""

    def __init__(self, lm: LanguageModel, make: Callable[[int, Batch], BlockGates]) -> None:
        super().__init__(lm, (), ())
        self._make, self._number = make, 0
        self._applied = ExitStack()
        self._slopes: list[list[Tensor]] = []

    def __enter__(self) -> Self:
        self.callback(self._applied.close)
        return super().__enter__()

    def start(self, batch: Batch) -> None:
        self._applied.close()
        self._block = self._make(self._number, batch)
        self._slopes = [[] for _ in self._block.gates]
        for gate, slopes in zip(self._block.gates, self._slopes, strict=True):
            # A copy, because the gradient of the next loss is added to the same tensor.
            gate.register_hook(partial(_keep_copy, slopes))
        self._applied.enter_context(self._block.apply())

    def count_predictions(self, number: int) -> None:
        self._block.finish(self._slopes)
        self._number += 1


def _keep_copy(slopes: list[Tensor], gradient: Tensor) -> None:
    slopes.append(gradient.clone())
