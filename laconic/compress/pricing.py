"""How `keep` becomes one rung for each unit: counted from shapes, or in time measured on this machine.

A budget of time: `keep` of the measured latency of the whole model.

The prices come from the machine's timings of products (`laconic.allocate.gemm_timings`). Which part of a pass the dense
matrices take comes from the model itself; the rest of the pass is fixed. A table knows nothing of what a model does to
the caches between two products, so the plan is put in place in a copy and timed beside the original, the prices of all
that is compressed are scaled by what was off, and the budget is spent again.
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
"""By the name of the unit."""


class Pricing(ABC):
    """What the rungs cost, and so which of them are chosen."""

    @abstractmethod
    def spend(
        self, groups: Sequence[TiedGroup], candidates: CandidatesByUnit, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        """One rung for each unit of one alternative of each family, by the unit's name, within `keep`, or, where
        that is measured, as near to it as was found.

        Raises:
            UserError: the smallest sizes on offer cost more.
        """


@dataclass(frozen=True)
class CountedPricing(Pricing):
    """`keep` is of what the matrices themselves cost."""

    currency: Currency

    def spend(
        self, groups: Sequence[TiedGroup], candidates: CandidatesByUnit, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        if self.currency == "macs":
            return choose_candidates(
                alternatives(groups, candidates),
                budget_for(separate_candidates(groups, candidates), keep, self.currency),
            )
        # What is stored once counts once, for as long as nothing takes its place.
        once = _count_once(groups, candidates)
        offered = [way for tied in group_by_matrix(groups) for way in _group_alternatives(tied, candidates, once)]
        counted = [once.get(unit.name, candidates[unit.name]) for group in groups for unit in group[0]]
        return choose_candidates(offered, budget_for(counted, keep, self.currency))


def _group_alternatives(
    group: Sequence[TiedGroup], candidates: CandidatesByUnit, once: CandidatesByUnit
) -> list[Alternatives]:
    """The alternatives of families that are one matrix in memory: each with a size of its own, or all as they are."""
    if len(group) == 1:
        return alternatives(group, candidates)
    names = [unit.name for family in group for unit in family[0]]
    return [[{name: candidates[name] for name in names}, {name: Candidates((once[name].dense,)) for name in names}]]


def _count_once(groups: Sequence[TiedGroup], candidates: CandidatesByUnit) -> dict[str, Candidates]:
    """The ladders of matrices that are one in memory; all but the first take nothing as they are."""
    found: dict[str, Candidates] = {}
    for first, *others in (group for group in group_by_matrix(groups) if len(group) > 1):
        found |= {unit.name: candidates[unit.name] for unit in first[0]}
        for unit in (unit for family in others for unit in family[0]):
            free = replace(candidates[unit.name].dense, nbytes=0, parameters=0)
            found[unit.name] = Candidates((free,))
    return found


def separate_candidates(groups: Sequence[TiedGroup], candidates: CandidatesByUnit) -> list[Candidates]:
    """The ladder of every matrix by itself."""
    return [candidates[unit.name] for family in groups for unit in family[0]]


def alternatives(groups: Sequence[TiedGroup], candidates: CandidatesByUnit) -> list[Alternatives]:
    """The ladders of each family, one mapping for each way to divide it."""
    return [[{unit.name: candidates[unit.name] for unit in alternative} for alternative in family] for family in groups]


TRIALS = 3
CLOSE_ENOUGH = 0.02
"""Of `keep`: how far off a plan may be to be spent no further time on."""
WARM_UP = 2
ROUNDS = 15
FEWEST_ROUNDS = 5
PATIENCE = 40.0
"""Seconds after which slow models are timed no more, once they have run often enough for a median."""


@dataclass(frozen=True)
class LatencyPricing(Pricing):
    """`keep` is of the time of one forward pass of `lm`."""

    lm: LanguageModel
    workload: Workload
    track: Track

    def spend(
        self, groups: Sequence[TiedGroup], candidates: CandidatesByUnit, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        # Timed while the others wait: no two measure the same, and they would slow each other.
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
                # A correction that left nothing affordable came of a disturbed measurement.
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
    """profile: which part of a pass the matrices are. scale: what compressed ones take here relative to the table."""

    profile: Profile
    times: ProductTimes
    scale: float = 1.0

    def priced(self, units: Sequence[SolveGroup], candidates: CandidatesByUnit) -> dict[str, Candidates]:
        """The ladders with the time of every rung; what the table does not have is measured now."""
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
        """`keep` of the whole pass, in the table's units; `priced` are the ladders of every matrix by itself."""
        of_matrices = budget_for(priced, keep, "latency")
        share = sum(use.share for use in self.profile.uses.values())
        if not share:
            raise must_be(
                "targets", "matrices that take time where currency is latency; a look-up takes none", "embedding"
            )
        whole = round(of_matrices.dense / share)
        return replace(of_matrices, dense=whole, fixed=whole - of_matrices.dense)

    def rescale(self, chosen: Sequence[Candidate], budget: Budget, measured: float) -> "Prices":
        """Scaled so that the rungs `chosen` within `budget` take the measured part of the dense pass."""
        compressed = sum(candidate.nanoseconds for candidate in chosen if candidate.method is not None)
        left = sum(candidate.nanoseconds for candidate in chosen if candidate.method is None)
        took = measured * budget.dense - budget.fixed - left
        # A pass that took less than its fixed part was disturbed, and says nothing.
        return replace(self, scale=self.scale * took / compressed) if compressed and took > 0 else self

    def _nanoseconds(self, unit: SolveGroup, candidate: Candidate) -> int:
        if candidate.method is None:
            return sum(calls * self.times.nanoseconds(product) for calls, product in self._executed(unit, candidate))
        table = sum(calls * self.times.interpolate(product) for calls, product in self._executed(unit, candidate))
        return round(self.scale * table)

    def _executed(self, unit: SolveGroup, candidate: Candidate) -> Iterator[tuple[int, Product]]:
        """The products of one pass, with how often each is made.

        Of a unit of several matrices the common factor is multiplied by once, and each has a last factor of its own.
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
    """Time of a copy of `lm` with the `chosen` rungs in place, relative to `lm`: median over passes of both in turn."""
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
