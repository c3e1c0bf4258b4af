"""The base of a pass over the blocks of a model, one after another, that measures the layers of each."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.calibrate.collation import to_device
from laconic.calibrate.collect_stats import Calibration, check_stats
from laconic.calibrate.layer_stats import LayerStats, Problem
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.sequential import LayerProblems
from laconic.calibrate.solution_files import SolutionFiles, Solutions
from laconic.calibrate.spill import HiddenStates
from laconic.calibrate.starved import StarvedExperts
from laconic.calibrate.statistics import Statistic
from laconic.calibrate.stream import STATES, Stream, chain_error
from laconic.errors import UserError
from laconic.formats.expert_layer import find_expert_stacks, is_experts
from laconic.model import LanguageModel, Site
from laconic.processes import on_rank_zero
from laconic.system import release_freed_memory


class BlockwisePass:
    """The model, its batches and its layers, as both passes need them.

    A pass goes on where an earlier run of the same step stopped (`Loans.finished`). Every finished part is taken over
    when its turn comes, and not before. Everything is therefore measured on the same weights as in a run without a
    stop, whatever is finished, and whatever hidden states are still there.

    Args:
        lm: the model.
        data: the calibration data.
        needs: the types of statistics to collect.
        sites: the layers, in forward order.
        writes: write parts back after they were yielded.
        files: get the solutions of every part after it was yielded. The pass then goes on with the hidden states that
            an earlier run left; None to keep no solutions.
    """

    keeps_inputs = False

    def __init__(
        self,
        lm: LanguageModel,
        data: Calibration,
        needs: Collection[type[Statistic]],
        sites: Sequence[Site],
        *,
        writes: bool,
        files: SolutionFiles | None = None,
    ) -> None:
        self.lm, self.data, self.needs, self.sites, self.writes = lm, data, needs, sites, writes
        self._files = files
        self._solutions: dict[str, Solutions] = {}
        shares = data.shares()
        self.generators = [generator for _, generator in shares]
        self.batches = [to_device(batch, lm.device) for batch, _ in shares]
        folder = STATES if writes else "planning"
        self.stream = Stream(lm, self.batches, replays=True, keeps_inputs=self.keeps_inputs, folder=folder)
        self.stacks = [[path for path, _ in blocks] for _, blocks in lm.stacks()]
        self.done = find_finished(lm) if writes else frozenset()
        self._waiting = set(self.done)
        goes_on = lm.loans is not None and lm.loans.finished is not None if writes else files is not None
        if not goes_on:
            # Hidden states on disk may be those of another pass over the model.
            self.stream.delete_states()
        self.starved: list[StarvedExperts] = []
        self.outside = [site for site in sites if site.block is None]
        self.first: list[Site] = []
        """The layers before the blocks, such as the word embedding; known once the last stack is entered."""

    @property
    def last(self) -> list[Site]:
        """The layers after the blocks, such as the head."""
        return [site for site in self.outside if site not in self.first]

    def sites_in(self, path: str) -> list[Site]:
        """The layers in the block at `path` that are to be measured."""
        return [site for site in self.sites if site.block == path and path not in self.done]

    def unfinished(self, sites: Sequence[Site]) -> list[Site]:
        """The layers among `sites`, outside the blocks, that no earlier run finished."""
        return [site for site in sites if site.name not in self.done]

    def position(self, paths: Sequence[str]) -> int:
        """The number of the first block of a stack with layers to measure; the number of blocks if there is none."""
        return next((number for number, path in enumerate(paths) if self.sites_in(path)), len(paths))

    def take_over(self, *paths: str) -> None:
        """Give parts the formats and weights that an earlier run wrote, if it finished them; none is on loan."""
        for path in paths:
            if path in self._waiting:
                self._waiting.remove(path)
                self.lm.restore(path)

    def take_over_rest(self) -> None:
        """Take over all finished parts whose turn has not come."""
        self.take_over(*sorted(self._waiting))

    def enter(self, paths: Sequence[str], start: int = 0, found: Mapping[int, HiddenStates] | None = None) -> None:
        """Make a block of a stack the current one of the stream; see `Stream.enter`.

        Raises:
            UserError: the blocks do not form a chain.
        """
        if not self.stream.enter(paths, start, found):
            raise chain_error("measured", paths)
        if paths is self.stacks[-1] and not self.first:
            # The first process always has a batch.
            names = on_rank_zero(self._find_first)()
            self.first = [site for site in self.outside if site.name in names]

    def embedding_error(self, *, with_gradients: bool) -> UserError:
        """The error for a layer that lies before both stacks of an encoder-decoder."""
        obstacle = embedding_obstacle(self.first[0].name, with_gradients)
        return UserError(f"The model cannot be streamed: {obstacle}, or leave out stream.")

    @torch.no_grad()
    def _find_first(self) -> list[str]:
        """The names of the layers outside the blocks that run before the last block is entered."""
        called: set[nn.Module] = set()
        with ExitStack() as hooks, self.lm.loaned_on_call():
            for module in {place.module for site in self.outside for place in site.places}:
                hooks.callback(module.register_forward_pre_hook(lambda module, _: called.add(module)).remove)
            self.stream.capture(0)
        return [site.name for site in self.outside if any(place.module in called for place in site.places)]

    def problems_in(self, path: str, recorder: Recorder) -> Iterator[LayerProblems]:
        """Yield the layers of a block that is on loan with what `recorder` measured; then write it back."""
        sites = self.sites_in(path)
        if sites:
            yield self._problems(sites, self._stats(recorder))
            self._finish(path)

    def problems_outside(self, sites: Sequence[Site], recorder: Recorder) -> Iterator[LayerProblems]:
        """Yield layers outside the blocks one by one, each on loan, with what `recorder` measured.

        The recorder measures all of them, also those that are finished, so that what it measures does not depend on it.
        """
        stats = self._stats(recorder)
        for site in sites:
            if site.name in self.done:
                self.take_over(site.name)
                continue
            with self.lm.on_loan(*site.names):
                yield self._problems([site], {site.name: stats.pop(site.name)})
                self._finish(site.name)

    def _problems(self, sites: Sequence[Site], stats: Mapping[str, LayerStats]) -> LayerProblems:
        """The problems of layers on loan. Nothing here keeps their statistics, which the caller frees one by one."""
        self._solutions = {site.name: stats[site.name].solutions for site in sites}
        return [(site, Problem(weight=weight_on_loan(self.lm, site), stats=stats[site.name])) for site in sites]

    def _finish(self, path: str) -> None:
        """Write a part back, or its solutions, after its layers were yielded."""
        if self._files is not None:
            self._files.save(path, self._solutions)
        if self.writes:
            self.lm.write_back(path)
        self._solutions = {}

    def _stats(self, recorder: Recorder) -> dict[str, LayerStats]:
        stats = recorder.stats(gathered=True)
        self.starved += recorder.starved
        check_stats(stats, self.needs)
        # Solving takes much memory too, and cannot use what glibc keeps of the memory of activations.
        release_freed_memory()
        return stats


def embedding_obstacle(name: str, with_gradients: bool) -> str:
    """The reason why an embedding of an encoder-decoder cannot be streamed, and a remedy, as clauses.

    Args:
        name: the name of the layer.
        with_gradients: whether gradients are measured; else the blocks are measured in order.
    """
    subject = f"the gradients of '{name}'" if with_gradients else f"with sequential, '{name}'"
    return (
        f"{subject} cannot be measured block by block, because it lies before both stacks of an encoder-decoder; leave "
        "it out of the targets"
    )


def find_finished(lm: LanguageModel) -> frozenset[str]:
    """The paths of the parts that an earlier run of the same step finished."""
    return frozenset() if lm.loans is None else frozenset(lm.loans.finished or ())


def weight_on_loan(lm: LanguageModel, site: Site) -> Float[Tensor, "out in"]:
    """The matrix of a layer whose block is on loan.

    The stacks of experts that sites refer to have the parameters of a class from before they were on loan.

    Args:
        lm: the model.
        site: the layer.
    """
    parent, _, name = site.unit.rpartition(".")
    owner = lm.model.get_submodule(parent)
    index = site.places[0].index
    if index is None or not is_experts(owner):
        return site.weight()
    return find_expert_stacks(owner)[name].dense(index)
