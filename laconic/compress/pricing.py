"""Choose one candidate size for each group of layers within a budget, in counted costs or in measured time.

Counted costs (bytes, parameters, multiply-accumulates) follow from the shapes.

For a budget in time, `keep` is a fraction of the measured latency of the whole model. The time of each candidate comes
from a table of matrix product timings on this machine (`laconic.allocate.gemm_timings`). The share of the dense
matrices in a forward pass is measured on the model; the rest of the pass cannot be saved. The table does not include
effects between operations, such as cache misses. The plan is therefore applied to a copy of the model and timed against
the original, the table's times of compressed matrices are scaled by the ratio, and the budget is spent again.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median

import torch

from laconic import processes
from laconic.allocate import Alternatives, Budget, Currency, budget_for, choose_candidates
from laconic.allocate.gemm_timings import Product, ProductTimes, knots, product_times
from laconic.calibrate import Problem
from laconic.calibrate.passes import (
    Profile,
    Workload,
    evaluating,
    forward,
    profile,
    random_batch,
    read_clock,
    time_call,
)
from laconic.compress.replacing import replace_group, solve_matrices
from laconic.compress.solve_groups import LayerSet, SolveGroup, all_groups, sets_by_parameter
from laconic.errors import UserError, must_be
from laconic.formats import Format
from laconic.methods import Candidate, Candidates
from laconic.model import LanguageModel
from laconic.progress import Track

CandidatesByGroup = Mapping[str, Candidates]
"""The candidate sizes of each group of layers, by its name."""


class Pricing(ABC):
    """A way to price candidates, and to choose among them within a budget."""

    @abstractmethod
    def spend(self, layer_sets: Sequence[LayerSet], candidates: CandidatesByGroup, keep: float) -> dict[str, Candidate]:
        """Choose one alternative for each set of layers, and one candidate for each of its groups.

        Args:
            layer_sets: the targeted layers.
            candidates: the candidate sizes of all groups.
            keep: fraction of the cost to keep. A counted cost stays within it; a measured one is close to it.

        Returns:
            The chosen candidates by group name.

        Raises:
            UserError: even the smallest candidates cost more.
        """


@dataclass(frozen=True)
class CountedPricing(Pricing):
    """Counts bytes, parameters or multiply-accumulates of the targeted matrices.

    Args:
        currency: the unit of the cost; not `latency`.
    """

    currency: Currency

    def spend(self, layer_sets: Sequence[LayerSet], candidates: CandidatesByGroup, keep: float) -> dict[str, Candidate]:
        if self.currency == "macs":
            budget = budget_for(separate_candidates(layer_sets, candidates), keep, self.currency)
            return choose_candidates(alternatives(layer_sets, candidates), budget)
        # A parameter that several layers share counts once, as long as none of them is compressed.
        counted_once: dict[str, Candidates] = {}
        offered: list[Alternatives] = []
        for members in sets_by_parameter(layer_sets):
            if len(members) == 1:
                offered += alternatives(members, candidates)
                continue
            names = [group.name for layer_set in members for group in layer_set.separate]
            own_candidates = {name: candidates[name] for name in names}
            tied_dense = {name: replace(own_candidates[name].dense, nbytes=0, parameters=0) for name in names[1:]}
            counted_once |= own_candidates | {name: Candidates((dense,)) for name, dense in tied_dense.items()}
            # Each layer gets a candidate of its own, or all of them stay dense.
            offered.append([own_candidates, {name: Candidates((counted_once[name].dense,)) for name in names}])
        counted = separate_candidates(layer_sets, {**candidates, **counted_once})
        return choose_candidates(offered, budget_for(counted, keep, self.currency))


def separate_candidates(layer_sets: Sequence[LayerSet], candidates: CandidatesByGroup) -> list[Candidates]:
    """Return the candidates of every layer as a group of its own."""
    return [candidates[group.name] for layer_set in layer_sets for group in layer_set.separate]


def alternatives(layer_sets: Sequence[LayerSet], candidates: CandidatesByGroup) -> list[Alternatives]:
    """Return the candidates of each set of layers, with one mapping for each way to divide it into groups."""
    return [
        [{group.name: candidates[group.name] for group in alternative} for alternative in layer_set.alternatives]
        for layer_set in layer_sets
    ]


def loss_within(candidates: CandidatesByGroup, group: SolveGroup, whole: Format) -> float:
    """Return the least loss of candidates with at most the bytes of `whole`, or that of the smallest one."""
    offered = candidates[group.name].all
    within = [candidate.loss for candidate in offered if candidate.nbytes <= whole.nbytes()]
    return min(within) if within else min(offered, key=lambda candidate: candidate.nbytes).loss


TRIALS = 3
CLOSE_ENOUGH = 0.02
"""A plan is accepted if its measured latency differs from `keep` by at most this fraction of `keep`."""
WARM_UP = 2
ROUNDS = 15
FEWEST_ROUNDS = 5
PATIENCE = 40.0
"""Seconds after which no further round is timed, once there are `FEWEST_ROUNDS`."""


@dataclass(frozen=True)
class LatencyPricing(Pricing):
    """Measures time: `keep` is a fraction of the latency of one forward pass of the whole model.

    Args:
        lm: the dense model.
        workload: the forward pass to time.
        problems: the problem of each group, by name.
        track: shows progress.
    """

    lm: LanguageModel
    workload: Workload
    problems: Mapping[str, Problem]
    track: Track

    # Only the first process measures: timings of several processes would differ and slow each other.
    @processes.on_rank_zero
    def spend(self, layer_sets: Sequence[LayerSet], candidates: CandidatesByGroup, keep: float) -> dict[str, Candidate]:
        groups = all_groups(layer_sets)
        sites = list({site.unit: site for group in groups for site in group.sites}.values())
        prices = Prices(profile(self.lm, sites, self.workload, self.track), product_times(self.lm.device))
        tried: list[tuple[float, dict[str, Candidate]]] = []
        for _ in range(TRIALS):
            priced = prices.with_times(groups, candidates)
            budget = prices.budget(separate_candidates(layer_sets, priced), keep)
            try:
                chosen = choose_candidates(alternatives(layer_sets, priced), budget)
            except UserError:
                # If a correction makes every plan too slow, the last measurement was disturbed; keep the plans so far.
                if not tried:
                    raise
                break
            planned = [group for group in groups if group.name in chosen]
            measured = relative_latency(self, planned, chosen)
            tried.append((abs(measured - keep), chosen))
            if tried[-1][0] <= CLOSE_ENOUGH * keep:
                break
            prices = prices.rescale(list(chosen.values()), budget, measured)
        return min(tried, key=lambda trial: trial[0])[1]


@dataclass(frozen=True)
class Prices:
    """Times of candidates.

    Args:
        profile: time of a pass of the dense model, and the share of each matrix in it.
        times: table of product timings.
        scale: measured time of compressed matrices relative to the table.
    """

    profile: Profile
    times: ProductTimes
    scale: float = 1.0

    def with_times(self, groups: Sequence[SolveGroup], candidates: CandidatesByGroup) -> dict[str, Candidates]:
        """Return the candidates with their times; products that are missing in the table are measured.

        Args:
            groups: the groups.
            candidates: the candidates of each group, by name.
        """
        pairs = [(group, candidate) for group in groups for candidate in candidates[group.name].all]
        products = [
            knot
            for group, candidate in pairs
            for _, product in self._executed(group, candidate)
            for knot in (knots(product) if candidate.method else (product,))
        ]
        self.times.prepare(products)
        priced: dict[str, tuple[Candidate, ...]] = {}
        for group, candidate in pairs:
            timed = replace(candidate, nanoseconds=self._nanoseconds(group, candidate))
            priced[group.name] = (*priced.get(group.name, ()), timed)
        return {name: Candidates(options) for name, options in priced.items()}

    def budget(self, priced: Sequence[Candidates], keep: float) -> Budget:
        """Return the budget for the whole pass, in nanoseconds of the table.

        Args:
            priced: candidates with times of every layer as a group of its own.
            keep: fraction of the time of the pass.

        Raises:
            UserError: the targeted matrices take no time.
        """
        matrix_budget = budget_for(priced, keep, "latency")
        share = sum(timing.share for timing in self.profile.layers.values())
        if not share:
            raise must_be(
                "targets", "matrices that take time where currency is latency; a look-up takes none", "embedding"
            )
        whole = round(matrix_budget.dense / share)
        return replace(matrix_budget, dense=whole, fixed=whole - matrix_budget.dense)

    def rescale(self, chosen: Sequence[Candidate], budget: Budget, measured: float) -> "Prices":
        """Return prices at which the chosen candidates take the measured time.

        Args:
            chosen: the candidates of the plan that was timed.
            budget: the budget that they were chosen for.
            measured: measured time of the plan relative to the dense model.
        """
        table = sum(candidate.nanoseconds for candidate in chosen if candidate.method is not None)
        dense_time = sum(candidate.nanoseconds for candidate in chosen if candidate.method is None)
        measured_time = measured * budget.dense - budget.fixed - dense_time
        # A measured time below the fixed part of the pass is an outlier; ignore it.
        return replace(self, scale=self.scale * measured_time / table) if table and measured_time > 0 else self

    def _nanoseconds(self, group: SolveGroup, candidate: Candidate) -> int:
        if candidate.method is None:
            return sum(calls * self.times.nanoseconds(product) for calls, product in self._executed(group, candidate))
        table = sum(calls * self.times.interpolate(product) for calls, product in self._executed(group, candidate))
        return round(self.scale * table)

    def _executed(self, group: SolveGroup, candidate: Candidate) -> Iterator[tuple[int, Product]]:
        """Yield the matrix products of one pass, with the number of times that each is computed.

        In a group of several layers the shared input factor is applied once, and each layer has its own output factor.
        """
        for rows, calls in Counter(self.profile.layers[group.sites[0].name].rows).items():
            for out_features, in_features in candidate.products:
                for part in group.rows if out_features == sum(group.rows) else (out_features,):
                    yield calls, Product(rows, part, in_features)


def relative_latency(pricing: LatencyPricing, groups: Sequence[SolveGroup], chosen: Mapping[str, Candidate]) -> float:
    """Apply a plan to a copy of a model, and time the copy against the original.

    Args:
        pricing: the original model, the problems and the workload.
        groups: the groups of the plan.
        chosen: the candidate of each group, by name.

    Returns:
        Time of the copy relative to the original, as a median over alternating passes of both.
    """
    lm = pricing.lm
    small = replace(lm, model=deepcopy(lm.model))
    for group in groups:
        method = chosen[group.name].method
        if method is not None:
            replace_group(small, group, solve_matrices(small, group, method, pricing.problems), pricing.problems)
    inputs = random_batch(lm, pricing.workload.batch, pricing.workload.length)
    ratios: list[float] = []
    with evaluating(lm, small), torch.inference_mode():
        start = read_clock(lm.device)
        for number in pricing.track(range(WARM_UP + ROUNDS), "Timing the plan"):
            dense, compressed = (
                time_call(lambda model=model: forward(model, inputs), lm.device) for model in (lm, small)
            )
            if number >= WARM_UP:
                ratios.append(compressed / dense)
            if len(ratios) >= FEWEST_ROUNDS and read_clock(lm.device) - start > PATIENCE:
                break
    return median(ratios)
