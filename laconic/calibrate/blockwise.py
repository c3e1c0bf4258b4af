"""Statistics of the original model, block by block, so that those of one block are in memory at a time.

The result is that of `collect_stats`. A block runs once on every batch: this measures its layers and gives the inputs
of the next block. The caller then replaces its layers. Gradients need a second pass (`laconic.calibrate.checkpointed`).
"""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence

import torch

from laconic.calibrate.block_pass import BlockwisePass, find_finished, weight_on_loan
from laconic.calibrate.checkpointed import BackwardPass
from laconic.calibrate.collect_stats import Calibration, check_not_empty, without_weight_gradients
from laconic.calibrate.layer_stats import LayerStats, Problem
from laconic.calibrate.passes import evaluating
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.sequential import LayerProblems
from laconic.calibrate.solution_files import SolutionFiles, Solutions
from laconic.calibrate.spill import HiddenStates
from laconic.calibrate.starved import warn_of_starved
from laconic.calibrate.statistics import GradientStatistic, Statistic
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
        yield from visit(lm, sites, silent if data is None else data.track, writes)
        return
    yield from run_pass(lm, choose_pass(needs, sequential)(lm, data, needs, sites, writes=writes))


def choose_pass(
    needs: Collection[type[Statistic]], sequential: bool = False
) -> "type[ForwardPass] | type[BackwardPass]":
    """The kind of pass that measures some types of statistics; `sequential` as for `blockwise_calibrate`."""
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in needs)
    return BackwardPass if with_gradients else SequentialPass if sequential else ForwardPass


def run_pass(lm: LanguageModel, run: "ForwardPass | BackwardPass") -> Iterator[LayerProblems]:
    """Yield the layers of a pass with their problems, as `blockwise_calibrate` does."""
    check_not_empty(run.data)
    with evaluating(lm), without_weight_gradients(lm):
        yield from run.problems()
        # They would take up the disk while the next steps run.
        run.stream.delete_states()
        warn_of_starved(run.starved)


class ForwardPass(BlockwisePass):
    """One forward pass, for statistics of inputs."""

    def problems(self) -> Iterator[LayerProblems]:
        """Yield the layers with their problems, as `blockwise_calibrate` does."""
        remaining = {path for paths in self.stacks for path in paths if self.sites_in(path)}
        first: Recorder | None = None
        for paths in self.stacks:
            # Stacks after the last layer to measure need not run, nor the blocks after it.
            if not remaining and not self.unfinished(self.outside):
                break
            start, found = self._find_start(paths)
            self.enter(paths, start, found)
            first = yield from self.start(paths, start, found)
            self.take_over(*paths[:start])
            for path in self.data.track(paths[start:], "Measuring and compressing the blocks"):
                if remaining or self.unfinished(self.last):
                    yield from self.run_block(path)
                    remaining.discard(path)
        if self.unfinished(self.last):
            yield from self.problems_outside(self.last, self._measure_last())
        if first is not None:
            yield from self.problems_outside(self.first, first)
        self.take_over_rest()

    def _find_start(self, paths: Sequence[str]) -> tuple[int, dict[int, HiddenStates]]:
        """The number of the block to begin with, and its inputs.

        It is the first block with layers to measure, or an earlier one if the inputs of that one are not there.
        """
        for number in range(self.position(paths), 0, -1):
            states = self.stream.find_inputs(paths, number)
            if states is not None:
                return number, {number: states}
        return 0, {}

    def start(
        self, paths: Sequence[str], start: int, found: Mapping[int, HiddenStates]
    ) -> Generator[LayerProblems, None, Recorder | None]:
        """Measure the layers before the blocks; they are still needed as they are, and yielded at the end."""
        yield from ()
        return self.measure_first() if self.unfinished(self.first) else None

    def run_block(self, path: str) -> Iterator[LayerProblems]:
        """Run the current block, yield its layers, and make the next block the current one."""
        with self.lm.on_loan(path):
            yield from self.problems_in(path, self._measure(path))
        self.take_over(path)

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

    def start(
        self, paths: Sequence[str], start: int, found: Mapping[int, HiddenStates]
    ) -> Generator[LayerProblems, None, Recorder | None]:
        """Yield the layers before the blocks, and enter the stack again with what replaced them."""
        if self.first:
            if len(self.stacks) > 1:
                raise self.embedding_error(with_gradients=False)
            if self.unfinished(self.first):
                yield from self.problems_outside(self.first, self.measure_first())
            self.take_over(*(site.name for site in self.first))
            self.enter(paths, start, found)
        return None

    def run_block(self, path: str) -> Iterator[LayerProblems]:
        self.take_over(path)
        with self.lm.on_loan(path):
            sites = self.sites_in(path)
            if sites:
                with Recorder(self.lm, sites, self.needs) as recorder, torch.no_grad():
                    for number, batch in enumerate(self.batches):
                        recorder.start(batch)
                        self.stream.run(number)
                yield from self.problems_in(path, recorder)
            self.stream.advance()


def visit(
    lm: LanguageModel, sites: Sequence[Site], track: Track, writes: bool, files: SolutionFiles | None = None
) -> Iterator[LayerProblems]:
    """Yield the layers of each part of a model, on loan, without statistics.

    Args:
        lm: the model.
        sites: the layers.
        track: shows progress.
        writes: whether the caller changes the layers, so that a streamed model writes them back.
        files: has the solutions of every part that is not finished; None for problems without solutions.
    """
    done = find_finished(lm) if writes else frozenset()
    for path, own in track(list(by_part(sites).items()), "Compressing the blocks"):
        if path in done:
            lm.restore(path)
            continue
        solutions = None if files is None else files.load(path, [site.name for site in own])
        with lm.on_loan(path):
            yield [_without_statistics(lm, site, (solutions or {}).get(site.name, {})) for site in own]
            del solutions
            if writes:
                lm.write_back(path)


def _without_statistics(lm: LanguageModel, site: Site, solutions: Solutions) -> tuple[Site, Problem]:
    stats = LayerStats(support=site.support)
    stats.solutions |= solutions
    return site, Problem(weight=weight_on_loan(lm, site), stats=stats)


def by_part(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """The layers of each part: of a block, or a layer outside the blocks."""
    parts: dict[str, list[Site]] = {}
    for site in sites:
        parts.setdefault(site.block or site.name, []).append(site)
    return parts
