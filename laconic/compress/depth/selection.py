"""Which cuts to make, found by what they do to the predictions: one after the other, or by runs.

Greedy, as J. Song et al. drop blocks ("SLEB", arXiv 2402.09025): the cut that leaves the least KL divergence from the
original goes first; then all others are measured again without it. By runs: the divergence of every run of neighbours
is measured once, and for every number of runs those of least sum are found (`laconic.allocate.contiguous_dp`). The sum
is exact for what neighbours do together and guesses at what runs apart do, so the best few of these plans are measured
as a whole, and the one that diverges least is taken.

The ways to choose what is dropped, under one roof: a row of cuts and a number in, the cuts that go out.
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
"""Plans that are measured as a whole, at most; a single run was before."""


@dataclass(frozen=True)
class Limits:
    """alone:    whether cuts of one stack can be made, whatever becomes of the others.
    together: whether cuts of all stacks can be made, and no others.
    """

    alone: Allowed
    together: Allowed


def greedy(trial: Trial, row: Row, drop: int, limits: Limits, contiguous: bool) -> list[Cut]:
    """`drop` cuts, each the best beside those before; `contiguous` ones each beside another.

    Raises:
        UserError: there are not as many that can go.
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
    """Of the plans of `drop` cuts whose runs have the least sum of divergences, one for each number of runs, the one
    that diverges least; one run of them, where `contiguous`.

    Raises:
        UserError: there are not as many that can go.
    """
    lengths = [drop] if contiguous else range(1, drop + 1)
    # By their beginnings, as what stands for them is fitted for those that begin alike.
    runs = sorted(run for run in all_runs(row, lengths) if limits.alone(cuts_in(row, run)))
    tried = trial.data.track(runs, "Measuring the runs")
    costs = {run: trial.measure(cuts_in(row, run)).mean for run in tried}
    plans = _plans(row, costs, drop, limits.together)
    return min(trial.data.track(plans, "Measuring the plans"), key=lambda cuts: trial.measure(cuts).mean)


class _Plan(NamedTuple):
    """Cuts, the number of runs that they are, and the sum of the divergences of these."""

    cost: float
    runs: int
    cuts: list[Cut]


def _plans(row: Row, costs: Mapping[Run, float], drop: int, allowed: Allowed) -> list[list[Cut]]:
    """The `drop` cuts of least cost in each number of runs: the cheapest few of them, cheapest first."""
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
    """The plans of several stacks as one."""
    cuts = [cut for plan in share for cut in plan.cuts]
    return _Plan(sum(plan.cost for plan in share), sum(plan.runs for plan in share), cuts)


def _stacks(row: Row) -> list[range]:
    """The places in the row of each stack."""
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
    """The runs of those lengths that lie in one stack."""
    return [
        (start, start + length)
        for length in lengths
        for start in range(len(row) - length + 1)
        if None not in row[start : start + length]
    ]


def cuts_in(row: Row, run: Run) -> list[Cut]:
    """The cuts of one run."""
    return [cut for cut in row[slice(*run)] if cut is not None]


def sort_cuts(row: Row, cuts: Iterable[Cut]) -> list[Cut]:
    """`cuts` as they come in `row`."""
    wanted = set(cuts)
    return [cut for cut in row if cut in wanted and cut is not None]


def too_many_error(drop: int, most: int) -> UserError:
    """Said where no such number of cuts can be made."""
    return UserError(f"drop must be at most {most} for what can be dropped here; got {drop}.")


def _is_open(row: Row, at: int, chosen: Sequence[Cut], contiguous: bool) -> bool:
    if row[at] in chosen:
        return False
    neighbours = [row[i] for i in (at - 1, at + 1) if 0 <= i < len(row)]
    return not (contiguous and chosen) or any(cut in chosen for cut in neighbours if cut is not None)


Select = Literal["influence", "angular", "taylor", "greedy", "dp", "first", "last", "alternate"]
BY_PLACE: tuple[Select, ...] = ("first", "last", "alternate")
"""Those that look at no data."""
MEASURED: tuple[Select, ...] = ("greedy", "dp")
"""Those that try out what they drop."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How cuts are chosen; the fields are those of `Shorten`."""

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
        """For each entry of `quotas` that number of the cuts of its stacks, in forward order.

        `data` is for those that look at any, `trial` for those that measure what the model predicts (MEASURED).

        Raises:
            UserError: there are not as many that can go.
        """
        chosen: list[Cut] = []
        for stacks, drop in quotas.items():
            row = join_stacks(cuts, stacks)
            # A number for each stack is given by the user, and was looked at before.
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
    """The cuts of several stacks as one row, apart from each other."""
    row: list[Cut | None] = []
    for stack in stacks:
        row += [None, *cuts[stack]] if row else cuts[stack]
    return row


def choose_by_place(select: Select, row: Row, drop: int) -> list[Cut]:
    """The first or the last of the row, or every second one, beginning with the one before the last.

    Raises:
        UserError: the row is of several stacks, or not as long.
    """
    if None in row:
        raise UserError(f"select: {select} drops from one stack; give drop for each, as {{encoder: 1, decoder: 1}}.")
    places = {"first": range(len(row)), "last": range(len(row))[::-1], "alternate": range(len(row) - 1)[::-2]}[select]
    if drop > len(places):
        raise too_many_error(drop, len(places))
    return sort_cuts(row, [cut for place in places[:drop] if (cut := row[place]) is not None])


def choose_lowest(row: Row, scores: Mapping[Cut, float], drop: int, allowed: Allowed) -> list[Cut]:
    """The cuts of the lowest scores that can go together."""
    chosen: list[Cut] = []
    while len(chosen) < drop:
        # One that could not go yet may be able to after another.
        left = [cut for cut in sort_cuts(row, scores) if cut not in chosen and allowed([*chosen, cut])]
        if not left:
            raise too_many_error(drop, len(chosen))
        chosen.append(min(left, key=lambda cut: scores[cut]))
    return sort_cuts(row, chosen)


def choose_lowest_run(row: Row, scores: Mapping[tuple[int, int], float], allowed: Allowed) -> list[Cut]:
    """The cuts of the run of the lowest score that can go."""
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
