"""Statistics of the original model, block by block, so that those of one block are in memory at a time.

The result is that of `collect_stats`. A block runs once on every batch: this measures its layers and gives the inputs
of the next block. The caller then replaces its layers. Gradients need a second pass (`laconic.calibrate.checkpointed`).
"""

from collections.abc import Collection, Generator, Iterator, Sequence

import torch

from laconic.calibrate.block_pass import BlockwisePass, weight_on_loan
from laconic.calibrate.checkpointed import BackwardPass
from laconic.calibrate.collect_stats import Calibration, without_weight_gradients
from laconic.calibrate.layer_stats import LayerStats, Problem
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.sequential import LayerProblems
from laconic.calibrate.starved import warn_of_starved
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError
from laconic.model import LanguageModel, Site
from laconic.progress import Track, silent


def blockwise_calibrate(
    lm: LanguageModel,
    data: Calibration | None,
    needs: Collection[type[Statistic]],
    sites: Sequence[Site],
    *,
    sequential: bool = False,
    writes: bool = True,
) -> Iterator[LayerProblems]:
    """Yield the layers of each block with their problems, measured on the original model.

    The caller replaces the layers that it got before it asks for the next ones; they are on loan until then. Blocks
    come in forward order, or from the last to the first if a gradient statistic is needed. Layers outside the blocks
    come last, because other measurements still need them.

    Args:
        lm: the model.
        data: the calibration data; None if `needs` is empty.
        needs: the types of statistics to collect. If there are none, no block runs.
        sites: the layers, in forward order.
        sequential: measure later blocks on inputs with the errors of earlier ones, as `sequential_calibrate` does; for
            statistics of inputs only.
        writes: whether the caller changes the layers, so that a streamed model writes them back.

    Raises:
        UserError: there is no batch, or activations, predictions or gradients are not finite; or the blocks of a stack
            do not form a chain.
    """
    if data is None or not needs:
        yield from _visit(lm, sites, silent if data is None else data.track, writes)
        return
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in needs)
    with evaluating(lm), without_weight_gradients(lm):
        kind = BackwardPass if with_gradients else SequentialPass if sequential else ForwardPass
        run = kind(lm, data, needs, sites, writes=writes)
        yield from run.problems()
        warn_of_starved(run.starved)


class ForwardPass(BlockwisePass):
    """One forward pass, for statistics of inputs."""

    def problems(self) -> Iterator[LayerProblems]:
        """Yield the layers with their problems, as `blockwise_calibrate` does."""
        remaining = {path for paths in self.stacks for path in paths if self.sites_in(path)}
        if not remaining and not self.outside:
            return
        first: Recorder | None = None
        for paths in self.stacks:
            start = self.stream.resumes_at(paths, self.done)
            self.enter(paths, start)
            first = yield from self.start(paths)
            for path in self.data.track(paths[start:], "Measuring and compressing the blocks"):
                # Blocks after the last one that has sites need not run.
                if remaining or self.last:
                    with self.lm.on_loan(path):
                        yield from self.run_block(path)
                    remaining.discard(path)
        if self.last:
            yield from self.problems_outside(self.last, self._measure_last())
        if first is not None:
            yield from self.problems_outside(self.first, first)

    def start(self, paths: Sequence[str]) -> Generator[LayerProblems, None, Recorder | None]:
        """Measure the layers before the blocks; they are still needed as they are, and yielded at the end."""
        yield from ()
        return self.measure_first() if self.first else None

    def run_block(self, path: str) -> Iterator[LayerProblems]:
        """Run the current block, yield its layers, and make the next block the current one."""
        yield from self.problems_in(path, self._measure(path))

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
    def measure_first(self) -> Recorder:
        """Measure the layers before the blocks."""
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


class SequentialPass(ForwardPass):
    """The same, but each block runs again after its layers were replaced, and this gives the inputs of the next one."""

    def start(self, paths: Sequence[str]) -> Generator[LayerProblems, None, Recorder | None]:
        """Yield the layers before the blocks, and enter the stack again with what replaced them."""
        if self.first:
            if len(self.stacks) > 1:
                raise UserError(
                    f"'{self.first[0].name}' cannot be compressed block by block in order, because it lies before both "
                    "stacks of an encoder-decoder; leave it out of the targets, or leave out sequential."
                )
            yield from self.problems_outside(self.first, self.measure_first())
            self.outside = self.last
            self.enter(paths)
        return None

    def run_block(self, path: str) -> Iterator[LayerProblems]:
        sites = self.sites_in(path)
        if sites:
            with Recorder(self.lm, sites, self.needs) as recorder, torch.no_grad():
                for number, batch in enumerate(self.batches):
                    recorder.start(batch)
                    self.stream.run(number)
            yield from self.problems_in(path, recorder)
        self.stream.advance()


def _visit(lm: LanguageModel, sites: Sequence[Site], track: Track, writes: bool) -> Iterator[LayerProblems]:
    """Yield the layers of each part of a model, on loan, without statistics."""
    parts: dict[str, list[Site]] = {}
    for site in sites:
        parts.setdefault(site.block or site.name, []).append(site)
    done = frozenset() if lm.loans is None else lm.loans.restored
    for path, own in track([part for part in parts.items() if part[0] not in done], "Compressing the blocks"):
        with lm.on_loan(path):
            yield [
                (site, Problem(weight=weight_on_loan(lm, site), stats=LayerStats(support=site.support))) for site in own
            ]
            if writes:
                lm.write_back(path)
