"""Choose which cuts to make: by position, by importance, or by the measured KL divergence from the original.

`greedy` follows J. Song et al. ("SLEB", arXiv 2402.09025): make the cut with the least KL divergence, measure all
other cuts again without this part, and so on. `dp` measures every run of consecutive cuts once, and finds for every
number of runs the plan with the least sum of divergences. The divergence of a run includes the interaction of its cuts,
but the sum ignores interactions between runs. The best few plans are therefore measured as a whole, and the one with
the least divergence is taken.

The dynamic programme of `dp`: let c(i, j) be the cost of dropping only the run [i, j), and D(j, k, r) the least cost of
dropping k of the first j cuts in r runs. Then

    D(j, k, r) = min( D(j − 1, k, r),  min_i D(i − 1, k − (j − i), r − 1) + c(i, j) ),    D(−1, 0, 0) = D(0, 0, 0) = 0.

Cut i − 1 in front of a run is kept, so no two runs are adjacent; two adjacent runs count as one run with its own cost.
The result is exact if costs of different runs add up. It takes N K³ additions to drop up to K of N cuts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Literal, NamedTuple

from laconic.calibrate import Calibration
from laconic.compress.depth.cuts import (
    Allowed,
    Cut,
    Limits,
    Row,
    Run,
    all_runs,
    choose_lowest,
    choose_lowest_run,
    cuts_in,
    join_stacks,
    sort_cuts,
    too_many_error,
)
from laconic.compress.depth.importance import distances, importances, influences
from laconic.compress.depth.trial import Trial
from laconic.errors import UserError
from laconic.model import LanguageModel

MEASURED_PLANS = 6
"""Largest number of plans that are measured as a whole; a plan of a single run was measured already."""


def greedy(trial: Trial, row: Row, drop: int, limits: Limits, contiguous: bool) -> list[Cut]:
    """Choose cuts one after another, each with the least divergence given the cuts before it.

    Args:
        trial: measures divergences.
        row: all cuts in forward order.
        drop: number of cuts to choose.
        limits: which cuts the model allows.
        contiguous: choose each cut next to an earlier one.

    Raises:
        UserError: fewer than `drop` cuts can be made.
    """
    chosen: list[Cut] = []
    for number in range(drop):
        places = [at for at, cut in enumerate(row) if cut is not None and _is_open(row, at, chosen, contiguous)]
        candidates = [cut for at in places if (cut := row[at]) is not None and limits.together([*chosen, cut])]
        if not candidates:
            raise too_many_error(drop, number)
        tried = trial.data.track(candidates, f"Dropping number {number + 1} of {drop}")
        divergences = {cut: trial.measure(sort_cuts(row, [*chosen, cut])).mean for cut in tried}
        chosen.append(min(divergences, key=lambda cut: divergences[cut]))
    return sort_cuts(row, chosen)


def choose_runs(trial: Trial, row: Row, drop: int, limits: Limits, contiguous: bool) -> list[Cut]:
    """Choose cuts by dynamic programming over runs, and measure the best plans as a whole.

    Args:
        trial: measures divergences.
        row: all cuts in forward order.
        drop: number of cuts to choose.
        limits: which cuts the model allows.
        contiguous: choose a single run.

    Raises:
        UserError: fewer than `drop` cuts can be made.
    """
    lengths = [drop] if contiguous else range(1, drop + 1)
    # Sorted by first cut, because the maps of runs with the same first cut are fitted together.
    runs = sorted(run for run in all_runs(row, lengths) if limits.alone(cuts_in(row, run)))
    tried = trial.data.track(runs, "Measuring the runs")
    costs = {run: trial.measure(cuts_in(row, run)).mean for run in tried}
    plans = _plans(row, costs, drop, limits.together)
    return min(trial.data.track(plans, "Measuring the plans"), key=lambda cuts: trial.measure(cuts).mean)


class _Plan(NamedTuple):
    """Cuts, the number of runs that they form, and the sum of the divergences of these runs."""

    cost: float
    runs: int
    cuts: list[Cut]


def _plans(row: Row, costs: Mapping[Run, float], drop: int, allowed: Allowed) -> list[list[Cut]]:
    """The plan of least cost for each number of runs; the cheapest few of these plans, cheapest first."""
    shares = [_stack_plans(row, costs, stack, drop) for stack in _stacks(row)]
    plans = sorted(map(_merge_plans, product(*shares)), key=lambda plan: plan.cost)
    cheapest: dict[int, list[Cut]] = {}
    for plan in plans:
        if len(plan.cuts) == drop and plan.runs not in cheapest and allowed(plan.cuts):
            cheapest[plan.runs] = plan.cuts
    if not cheapest:
        raise too_many_error(drop, max((len(plan.cuts) for plan in plans if allowed(plan.cuts)), default=0))
    return list(cheapest.values())[:MEASURED_PLANS]


def _merge_plans(share: Sequence[_Plan]) -> _Plan:
    """Combine one plan of each stack."""
    cuts = [cut for plan in share for cut in plan.cuts]
    return _Plan(sum(plan.cost for plan in share), sum(plan.runs for plan in share), cuts)


def _stacks(row: Row) -> list[range]:
    """The indices in the row of the cuts of each stack."""
    ends = [at for at, cut in enumerate(row) if cut is None] + [len(row)]
    return [range(start, stop) for start, stop in zip([0, *(end + 1 for end in ends)], ends, strict=False)]


def _stack_plans(row: Row, costs: Mapping[Run, float], stack: range, drop: int) -> list[_Plan]:
    """The cheapest plan of one stack for each number of cuts and of runs."""
    inside = {
        (start - stack.start, stop - stack.start): cost
        for (start, stop), cost in costs.items()
        if stack.start <= start < stack.stop
    }
    best = contiguous_dp(inside, len(stack), drop).values()
    cuts = row[stack.start : stack.stop]
    return [_Plan(cost, len(runs), [cut for run in runs for cut in cuts_in(cuts, run)]) for cost, runs in best]


Size = tuple[int, int]
"""(number of dropped items, number of runs)."""


def contiguous_dp(costs: Mapping[Run, float], length: int, drop: int) -> dict[Size, tuple[float, tuple[Run, ...]]]:
    """Find the runs of least total cost for each number of dropped items and of runs.

    Args:
        costs: cost of dropping only the run [i, j); runs that are missing cannot be dropped.
        length: number of items.
        drop: largest number of items to drop.

    Returns:
        (cost, runs in order), by (number of dropped items, number of runs).

    Example:
        >>> costs = {(0, 1): 1.0, (1, 2): 5.0, (2, 3): 2.0, (0, 2): 9.0, (1, 3): 9.0}
        >>> contiguous_dp(costs, length=3, drop=2)[2, 2]
        (3.0, ((0, 1), (2, 3)))
    """
    # least[j][k, r]: D(j, k, r) and its runs.
    least: list[dict[Size, tuple[float, tuple[Run, ...]]]] = [{(0, 0): (0.0, ())}]
    for stop in range(1, length + 1):
        best = dict(least[stop - 1])
        for start in range(stop):
            cost = costs.get((start, stop), inf)
            if cost == inf:
                continue
            for (dropped, _), (paid, runs) in least[max(start - 1, 0)].items():
                size = dropped + stop - start, len(runs) + 1
                if size[0] <= drop and paid + cost < best.get(size, (inf, ()))[0]:
                    best[size] = (paid + cost, (*runs, (start, stop)))
        least.append(best)
    return least[length]


def _is_open(row: Row, at: int, chosen: Sequence[Cut], contiguous: bool) -> bool:
    if row[at] in chosen:
        return False
    neighbours = [row[i] for i in (at - 1, at + 1) if 0 <= i < len(row)]
    return not (contiguous and chosen) or any(cut in chosen for cut in neighbours if cut is not None)


Select = Literal["influence", "angular", "taylor", "greedy", "dp", "first", "last", "alternate"]
BY_PLACE: tuple[Select, ...] = ("first", "last", "alternate")
"""Selections by position, which need no data."""
MEASURED: tuple[Select, ...] = ("greedy", "dp")
"""Selections that measure the divergence of candidates."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The selection of cuts that a step asks for.

    Args:
        select: the selection, as in `Shorten`.
        contiguous: choose a single run of neighbours.
    """

    select: Select
    contiguous: bool

    def choose(
        self,
        lm: LanguageModel,
        data: Calibration | None,
        cuts: Mapping[str, list[Cut]],
        quotas: Mapping[tuple[str, ...], int],
        limits: Limits,
        trial: Trial | None = None,
    ) -> list[Cut]:
        """Choose the cuts to make.

        Args:
            lm: the model.
            data: calibration data; None for selections by position.
            cuts: all cuts in forward order, by stack.
            quotas: number of cuts to choose for each tuple of stacks.
            limits: which cuts the model allows.
            trial: measures divergences, for the selections in `MEASURED`.

        Returns:
            The chosen cuts in forward order.

        Raises:
            UserError: fewer cuts can be made.
        """
        chosen: list[Cut] = []
        for stacks, drop in quotas.items():
            row = join_stacks(cuts, stacks)
            # If the user gave a number for each stack, `check` has checked their combination already.
            stack_limits = limits if len(quotas) == 1 else Limits(limits.alone, limits.alone)
            if not drop:
                continue
            if self.select in BY_PLACE:
                chosen += choose_by_place(self.select, row, drop)
            elif trial is not None and self.select in MEASURED:
                search = greedy if self.select == "greedy" else choose_runs
                chosen += search(trial, row, drop, stack_limits, self.contiguous)
            else:
                assert data is not None
                by_stack = {stack: cuts[stack] for stack in stacks if cuts[stack]}
                chosen += self._choose_by_score(lm, data, by_stack, drop, stack_limits)
        return sort_cuts(join_stacks(cuts, tuple(cuts)), chosen)

    def score(self, lm: LanguageModel, data: Calibration, cuts: dict[str, list[Cut]], drop: int) -> dict[Cut, float]:
        """Measure the importance of the cuts of some stacks; for `angular`, of each run of `drop` cuts, by its first.

        Args:
            lm: the model.
            data: calibration data.
            cuts: the cuts in forward order, by stack.
            drop: number of cuts that will be chosen.
        """
        if self.select == "angular":
            return distances(lm, data, cuts, drop)
        if self.select == "taylor":
            return importances(lm, data, [cut for row in cuts.values() for cut in row])
        return influences(lm, data, cuts)

    def _choose_by_score(
        self, lm: LanguageModel, data: Calibration, cuts: dict[str, list[Cut]], drop: int, limits: Limits
    ) -> list[Cut]:
        """The `drop` cuts of some stacks, or the run of that length, with the lowest scores."""
        row, scores = join_stacks(cuts, tuple(cuts)), self.score(lm, data, cuts, drop)
        if self.select == "angular":
            runs = {run: scores[cuts_in(row, run)[0]] for run in all_runs(row, [drop])}
            return choose_lowest_run(row, runs, limits.together)
        if self.contiguous:
            sums = {run: sum(scores[cut] for cut in cuts_in(row, run)) for run in all_runs(row, [drop])}
            return choose_lowest_run(row, sums, limits.together)
        return choose_lowest(row, scores, drop, limits.together)


def choose_by_place(select: Select, row: Row, drop: int) -> list[Cut]:
    """Choose cuts by position.

    Args:
        select: `first`, `last`, or `alternate` for every second cut, counted backwards from the last but one.
        row: the cuts of one stack.
        drop: number of cuts to choose.

    Raises:
        UserError: the row has several stacks, or too few cuts.
    """
    if None in row:
        raise UserError(f"select: {select} drops from one stack; give drop for each, as {{encoder: 1, decoder: 1}}.")
    places = {"first": range(len(row)), "last": range(len(row))[::-1], "alternate": range(len(row) - 1)[::-2]}[select]
    if drop > len(places):
        raise too_many_error(drop, len(places))
    return sort_cuts(row, [cut for place in places[:drop] if (cut := row[place]) is not None])
