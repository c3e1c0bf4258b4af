"""Choose which cuts to make: by position, by importance, or by the measured KL divergence from the original.

`greedy` follows J. Song et al. ("SLEB", arXiv 2402.09025): make the cut with the least KL divergence, measure all
others again without it, and so on. `dp` measures every run of consecutive cuts once, and finds for every number of runs
the plan with the least sum of divergences (`laconic.allocate.contiguous_dp`). The divergence of a run includes the
interaction of its cuts, but the sum ignores interactions between runs. The best few plans are therefore measured as a
whole, and the one with the least divergence is taken.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from laconic.allocate.contiguous_dp import Run, contiguous_dp
from laconic.calibrate import Calibration
from laconic.compress.depth.cuts import Cut
from laconic.compress.depth.importance import distances, importances, influences
from laconic.compress.depth.trial import Trial
from laconic.errors import UserError
from laconic.model import LanguageModel

Row = Sequence[Cut | None]
"""Cuts in forward order; None between two stacks."""
Allowed = Callable[[Iterable[Cut]], bool]

MEASURED_PLANS = 6
"""Largest number of plans that are measured as a whole; a plan of a single run was measured already."""


@dataclass(frozen=True)
class Limits:
    """Which cuts a model allows.

    Args:
        alone: whether some cuts can be made, perhaps together with further cuts in other stacks.
        together: whether exactly these cuts can be made.
    """

    alone: Allowed
    together: Allowed


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
    whole = sorted(map(_merge_plans, product(*shares)), key=lambda plan: plan.cost)
    found: dict[int, list[Cut]] = {}
    for plan in whole:
        if len(plan.cuts) == drop and plan.runs not in found and allowed(plan.cuts):
            found[plan.runs] = plan.cuts
    if not found:
        raise too_many_error(drop, max((len(plan.cuts) for plan in whole if allowed(plan.cuts)), default=0))
    return list(found.values())[:MEASURED_PLANS]


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


def all_runs(row: Row, lengths: Iterable[int]) -> list[Run]:
    """Return all runs [start, stop) of the given lengths that lie within one stack."""
    return [
        (start, start + length)
        for length in lengths
        for start in range(len(row) - length + 1)
        if None not in row[start : start + length]
    ]


def cuts_in(row: Row, run: Run) -> list[Cut]:
    """Return the cuts of one run."""
    return [cut for cut in row[slice(*run)] if cut is not None]


def sort_cuts(row: Row, cuts: Iterable[Cut]) -> list[Cut]:
    """Return `cuts` in the order of `row`."""
    wanted = set(cuts)
    return [cut for cut in row if cut in wanted and cut is not None]


def too_many_error(drop: int, most: int) -> UserError:
    """Return the error for `drop` cuts when at most `most` can be made."""
    return UserError(f"drop must be at most {most} for what can be dropped here; got {drop}.")


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
    """How cuts are chosen.

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
            together = limits if len(quotas) == 1 else Limits(limits.alone, limits.alone)
            if not drop:
                continue
            if self.select in BY_PLACE:
                chosen += choose_by_place(self.select, row, drop)
            elif trial is not None and self.select in MEASURED:
                search = greedy if self.select == "greedy" else choose_runs
                chosen += search(trial, row, drop, together, self.contiguous)
            else:
                assert data is not None
                chosen += self._choose_by_score(lm, data, row, drop, together)
        return sort_cuts(join_stacks(cuts, tuple(cuts)), chosen)

    def _choose_by_score(self, lm: LanguageModel, data: Calibration, row: Row, drop: int, limits: Limits) -> list[Cut]:
        """The `drop` cuts of one row, or the run of that length, with the lowest scores."""
        every = _by_stack(row)
        if self.select == "angular":
            starts = distances(lm, data, every, drop)
            runs = {run: starts[cuts_in(row, run)[0]] for run in all_runs(row, [drop])}
            return choose_lowest_run(row, runs, limits.together)
        of_row = [cut for cut in row if cut is not None]
        scores = importances(lm, data, of_row) if self.select == "taylor" else influences(lm, data, every)
        if self.contiguous:
            sums = {run: sum(scores[cut] for cut in cuts_in(row, run)) for run in all_runs(row, [drop])}
            return choose_lowest_run(row, sums, limits.together)
        return choose_lowest(row, scores, drop, limits.together)


def join_stacks(cuts: Mapping[str, list[Cut]], stacks: Sequence[str]) -> list[Cut | None]:
    """Concatenate the cuts of several stacks, with None between two stacks."""
    row: list[Cut | None] = []
    for stack in stacks:
        row += [None, *cuts[stack]] if row else cuts[stack]
    return row


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


def choose_lowest(row: Row, scores: Mapping[Cut, float], drop: int, allowed: Allowed) -> list[Cut]:
    """Choose the cuts with the lowest scores that the model allows together.

    Args:
        row: all cuts in forward order.
        scores: the score of each cut.
        drop: number of cuts to choose.
        allowed: whether cuts can be made.

    Raises:
        UserError: fewer than `drop` cuts can be made.
    """
    chosen: list[Cut] = []
    while len(chosen) < drop:
        # A cut that is not allowed yet may be allowed after another one.
        left = [cut for cut in sort_cuts(row, scores) if cut not in chosen and allowed([*chosen, cut])]
        if not left:
            raise too_many_error(drop, len(chosen))
        chosen.append(min(left, key=lambda cut: scores[cut]))
    return sort_cuts(row, chosen)


def choose_lowest_run(row: Row, scores: Mapping[tuple[int, int], float], allowed: Allowed) -> list[Cut]:
    """Choose the run with the lowest score that the model allows.

    Args:
        row: all cuts in forward order.
        scores: the score of each run.
        allowed: whether cuts can be made.

    Raises:
        UserError: no run can be dropped.
    """
    runs = [run for run in scores if allowed(cuts_in(row, run))]
    if not runs:
        length = next((stop - start for start, stop in scores), 0)
        raise UserError(f"No run of {length or 'that many'} neighbours can be dropped here; give a smaller drop.")
    return cuts_in(row, min(runs, key=lambda run: scores[run]))


def _by_stack(row: Row) -> dict[str, list[Cut]]:
    every: dict[str, list[Cut]] = {}
    for cut in row:
        if cut is not None:
            every.setdefault(cut.stack, []).append(cut)
    return every
