"""Choose one candidate size for each unit within a budget, in counted costs or in measured time.

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
from laconic.calibrate.passes import Profile, Workload, evaluating, forward, now, profile, random_batch, seconds_of
from laconic.compress.solve_groups import SolveGroup, TiedGroup, all_units, group_by_matrix
from laconic.compress.solving import finite_weight, replace_layers
from laconic.errors import UserError, must_be
from laconic.methods import Candidate, Candidates
from laconic.model import LanguageModel
from laconic.progress import Track

CandidatesByUnit = Mapping[str, Candidates]
"""The candidate sizes of each unit, by its name."""


class Pricing(ABC):
    """A way to price candidates, and to choose among them within a budget."""

    @abstractmethod
    def spend(
        self, groups: Sequence[TiedGroup], candidates: CandidatesByUnit, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        """Choose one alternative for each family, and one candidate for each of its units.

        Args:
            groups: the families.
            candidates: the candidate sizes of all units.
            problems: the problem of each unit, by name.
            keep: fraction of the cost to keep. A counted cost stays within it; a measured one is close to it.

        Returns:
            The chosen candidates by unit name.

        Raises:
            UserError: even the smallest candidates cost more.
        """


@dataclass(frozen=True)
class CountedPricing(Pricing):
    """Counts bytes, parameters or multiply-accumulates of the targeted matrices.

    Args:
        currency: what is counted; not `latency`.
    """

    currency: Currency

    def spend(
        self, groups: Sequence[TiedGroup], candidates: CandidatesByUnit, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        if self.currency == "macs":
            return choose_candidates(
                alternatives(groups, candidates),
                budget_for(separate_candidates(groups, candidates), keep, self.currency),
            )
        # A parameter that several layers share counts once, as long as none of them is compressed.
        once = _count_once(groups, candidates)
        offered = [way for tied in group_by_matrix(groups) for way in _group_alternatives(tied, candidates, once)]
        counted = [once.get(unit.name, candidates[unit.name]) for group in groups for unit in group[0]]
        return choose_candidates(offered, budget_for(counted, keep, self.currency))


def _group_alternatives(
    group: Sequence[TiedGroup], candidates: CandidatesByUnit, once: CandidatesByUnit
) -> list[Alternatives]:
    """Alternatives for families that share a parameter: each gets a candidate of its own, or all stay dense."""
    if len(group) == 1:
        return alternatives(group, candidates)
    names = [unit.name for family in group for unit in family[0]]
    return [[{name: candidates[name] for name in names}, {name: Candidates((once[name].dense,)) for name in names}]]


def _count_once(groups: Sequence[TiedGroup], candidates: CandidatesByUnit) -> dict[str, Candidates]:
    """Candidates of units that share a parameter; the dense candidate of all but the first costs nothing."""
    found: dict[str, Candidates] = {}
    for first, *others in (group for group in group_by_matrix(groups) if len(group) > 1):
        found |= {unit.name: candidates[unit.name] for unit in first[0]}
        for unit in (unit for family in others for unit in family[0]):
            free = replace(candidates[unit.name].dense, nbytes=0, parameters=0)
            found[unit.name] = Candidates((free,))
    return found


def separate_candidates(groups: Sequence[TiedGroup], candidates: CandidatesByUnit) -> list[Candidates]:
    """Return the candidates of every layer as a unit of its own."""
    return [candidates[unit.name] for family in groups for unit in family[0]]


def alternatives(groups: Sequence[TiedGroup], candidates: CandidatesByUnit) -> list[Alternatives]:
    """Return the candidates of each family, with one mapping for each way to divide it into units."""
    return [[{unit.name: candidates[unit.name] for unit in alternative} for alternative in family] for family in groups]


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
        track: shows progress.
    """

    lm: LanguageModel
    workload: Workload
    track: Track

    def spend(
        self, groups: Sequence[TiedGroup], candidates: CandidatesByUnit, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        # Only the first process measures: timings of several processes would differ and slow each other.
        return processes.on_rank_zero(self._spend)(groups, candidates, problems, keep)

    def _spend(
        self, groups: Sequence[TiedGroup], candidates: CandidatesByUnit, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        units = all_units(groups)
        sites = list({site.name: site for unit in units for site in unit.sites}.values())
        prices = Prices(profile(self.lm, sites, self.workload, self.track), product_times(self.lm.device))
        tried: list[tuple[float, dict[str, Candidate]]] = []
        for _ in range(TRIALS):
            priced = prices.priced(units, candidates)
            budget = prices.budget(separate_candidates(groups, priced), keep)
            try:
                chosen = choose_candidates(alternatives(groups, priced), budget)
            except UserError:
                # If a correction makes every plan too slow, the last measurement was disturbed; keep the plans so far.
                if not tried:
                    raise
                break
            chosen_units = [unit for unit in units if unit.name in chosen]
            measured = relative_latency(self.lm, chosen_units, chosen, problems, self)
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

    def priced(self, units: Sequence[SolveGroup], candidates: CandidatesByUnit) -> dict[str, Candidates]:
        """Return the candidates with their times; products that are missing in the table are measured.

        Args:
            units: the units.
            candidates: the candidates of each unit, by name.
        """
        rungs = [(unit, candidate) for unit in units for candidate in candidates[unit.name].all]
        executed = [(candidate, product) for unit, candidate in rungs for _, product in self._executed(unit, candidate)]
        dense = [product for candidate, product in executed if candidate.method is None]
        self.times.prepare(
            dense + [knot for candidate, product in executed if candidate.method for knot in knots(product)]
        )
        return {
            unit.name: Candidates(
                tuple(
                    replace(candidate, nanoseconds=self._nanoseconds(unit, candidate))
                    for candidate in candidates[unit.name].all
                )
            )
            for unit in units
        }

    def budget(self, priced: Sequence[Candidates], keep: float) -> Budget:
        """Return the budget for the whole pass, in nanoseconds of the table.

        Args:
            priced: candidates with times of every layer as a unit of its own.
            keep: fraction of the time of the pass.

        Raises:
            UserError: the targeted matrices take no time.
        """
        of_matrices = budget_for(priced, keep, "latency")
        share = sum(use.share for use in self.profile.uses.values())
        if not share:
            raise must_be(
                "targets", "matrices that take time where currency is latency; a look-up takes none", "embedding"
            )
        whole = round(of_matrices.dense / share)
        return replace(of_matrices, dense=whole, fixed=whole - of_matrices.dense)

    def rescale(self, chosen: Sequence[Candidate], budget: Budget, measured: float) -> "Prices":
        """Return prices at which the chosen candidates take the measured time.

        Args:
            chosen: the candidates of the plan that was timed.
            budget: the budget that they were chosen for.
            measured: measured time of the plan relative to the dense model.
        """
        compressed = sum(candidate.nanoseconds for candidate in chosen if candidate.method is not None)
        left = sum(candidate.nanoseconds for candidate in chosen if candidate.method is None)
        took = measured * budget.dense - budget.fixed - left
        # A measured time below the fixed part of the pass is an outlier; ignore it.
        return replace(self, scale=self.scale * took / compressed) if compressed and took > 0 else self

    def _nanoseconds(self, unit: SolveGroup, candidate: Candidate) -> int:
        if candidate.method is None:
            return sum(calls * self.times.nanoseconds(product) for calls, product in self._executed(unit, candidate))
        table = sum(calls * self.times.interpolate(product) for calls, product in self._executed(unit, candidate))
        return round(self.scale * table)

    def _executed(self, unit: SolveGroup, candidate: Candidate) -> Iterator[tuple[int, Product]]:
        """Yield the matrix products of one pass, with the number of times that each is computed.

        In a unit of several layers the shared input factor is applied once, and each layer has its own output factor.
        """
        for rows, calls in Counter(self.profile.uses[unit.sites[0].name].rows).items():
            for out_features, in_features in candidate.products:
                for part in unit.rows if out_features == sum(unit.rows) else (out_features,):
                    yield calls, Product(rows, part, in_features)


def relative_latency(
    lm: LanguageModel,
    units: Sequence[SolveGroup],
    chosen: Mapping[str, Candidate],
    problems: Mapping[str, Problem],
    timed: LatencyPricing,
) -> float:
    """Apply a plan to a copy of a model, and time the copy against the original.

    Args:
        lm: the original.
        units: the units of the plan.
        chosen: the candidate of each unit, by name.
        problems: the problem of each unit, by name.
        timed: workload and progress display.

    Returns:
        Time of the copy relative to the original, as a median over alternating passes of both.
    """
    small = replace(lm, model=deepcopy(lm.model))
    for unit in units:
        method, problem = chosen[unit.name].method, problems[unit.name]
        if method is not None:
            whole = method.compress(finite_weight(small, unit, problem), problem.stats)
            replace_layers(small, unit, whole, problem)
    inputs = random_batch(lm, timed.workload.batch, timed.workload.length)
    ratios: list[float] = []
    with evaluating(lm, small), torch.inference_mode():
        start = now(lm.device)
        for number in timed.track(range(WARM_UP + ROUNDS), "Timing the plan"):
            dense, compressed = (
                seconds_of(lambda model=model: forward(model, inputs), lm.device) for model in (lm, small)
            )
            if number >= WARM_UP:
                ratios.append(compressed / dense)
            if len(ratios) >= FEWEST_ROUNDS and now(lm.device) - start > PATIENCE:
                break
    return median(ratios)
