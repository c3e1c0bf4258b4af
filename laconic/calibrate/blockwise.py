"""Statistics of the original model, block by block, so that those of one block are in memory at a time.

The result is that of `collect_stats`. A block runs once on every batch: this measures its layers and gives the inputs
of the next block. The caller then replaces its layers. Gradients need a second pass (`laconic.calibrate.checkpointed`).
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.checkpointed import BackwardPass
from laconic.calibrate.collect_stats import Calibration, without_weight_gradients
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.sequential import LayerProblems
from laconic.calibrate.starved import warn_of_starved
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError
from laconic.model import LanguageModel, Site


def blockwise_calibrate(
    lm: LanguageModel, data: Calibration, needs: Collection[type[Statistic]], sites: Sequence[Site]
) -> Iterator[LayerProblems]:
    """Yield the layers of each block with their problems, measured on the original model.

    The caller replaces the layers that it got before it asks for the next ones; they are on loan until then. Blocks
    come in forward order, or from the last to the first if a gradient statistic is needed. Layers outside the blocks
    come last, because other measurements still need them.

    Args:
        lm: the model.
        data: the calibration data.
        needs: the types of statistics to collect.
        sites: the layers, in forward order.

    Raises:
        UserError: there is no batch, or activations, predictions or gradients are not finite; or the blocks of a stack
            do not form a chain.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in needs)
    with evaluating(lm), without_weight_gradients(lm):
        run = (BackwardPass if with_gradients else ForwardPass)(lm, data, needs, sites)
        yield from run.problems()
        warn_of_starved(run.starved)


class ForwardPass(BlockwisePass):
    """One forward pass, for statistics of inputs."""

    def problems(self) -> Iterator[LayerProblems]:
        """Yield the layers with their problems, as `blockwise_calibrate` does."""
        remaining = {path for paths in self.stacks for path in paths if self.sites_in(path)}
        for paths in self.stacks:
            self.enter(paths)
            first = self._measure_first() if self.first else None
            for path in self.data.track(paths, "Measuring and compressing the blocks"):
                # Blocks after the last one that has sites need not run.
                if remaining or self.last:
                    with self.lm.on_loan(path):
                        yield from self.problems_in(path, self._measure(path))
                    remaining.discard(path)
        if self.last:
            yield from self.problems_outside(self.last, self._measure_last())
        if first is not None:
            yield from self.problems_outside(self.first, first)

    @torch.no_grad()
    def _measure(self, path: str) -> Recorder:
        """Run the current block on all batches, and make the next block the current one."""
        recorder = Recorder(self.lm, self.sites_in(path), self.needs)
        states = self.stream.next_states()
        with recorder, self.stream.decode_codes():
            for number, batch in enumerate(self.batches):
                recorder.start(batch)
                self.stream.run_once(number, states)
        self.stream.move_to(states)
        return recorder

    @torch.no_grad()
    def _measure_first(self) -> Recorder:
        with self.lm.loaned_on_call(keep=True), Recorder(self.lm, self.first, self.needs) as recorder:
            for number, batch in enumerate(self.batches):
                recorder.start(batch)
                self.stream.capture(number)
        return recorder

    @torch.no_grad()
    def _measure_last(self) -> Recorder:
        with self.lm.loaned_on_call(keep=True), Recorder(self.lm, self.last, self.needs) as recorder:
            for number, batch in enumerate(self.batches):
                recorder.start(batch)
                self.stream.run_end(number)
        return recorder
