"""The ways to choose what is dropped, under one roof: a row of cuts and a number in, the cuts that go out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from laconic.calibrate import Calibration
from laconic.compress.depth.cuts import Cut
from laconic.compress.depth.layer_gates import importances
from laconic.compress.depth.search import (
    Allowed,
    Limits,
    Row,
    by_runs,
    every_run,
    greedy,
    in_order,
    too_many,
    within,
)
from laconic.compress.depth.stream import distances, influences
from laconic.compress.depth.trial import Trial
from laconic.errors import UserError
from laconic.model import LanguageModel

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
            row = row_of(cuts, stacks)
            # A number for each stack is given by the user, and was looked at before.
            together = limits if len(quotas) == 1 else Limits(limits.alone, limits.alone)
            if not drop:
                continue
            if self.select in BY_PLACE:
                chosen += by_place(self.select, row, drop)
            elif trial is not None and self.select in MEASURED:
                search = greedy if self.select == "greedy" else by_runs
                chosen += search(trial, row, drop, together, self.contiguous)
            else:
                assert data is not None
                chosen += self._lowest(lm, data, row, drop, together)
        return in_order(row_of(cuts, tuple(cuts)), chosen)

    def _lowest(self, lm: LanguageModel, data: Calibration, row: Row, drop: int, limits: Limits) -> list[Cut]:
        """The `drop` cuts of one row, or the run of that length, with the lowest scores."""
        every = _by_stack(row)
        if self.select == "angular":
            starts = distances(lm, data, every, drop)
            runs = {run: starts[within(row, run)[0]] for run in every_run(row, [drop])}
            return least_run(row, runs, limits.together)
        of_row = [cut for cut in row if cut is not None]
        scores = importances(lm, data, of_row) if self.select == "taylor" else influences(lm, data, every)
        if self.contiguous:
            sums = {run: sum(scores[cut] for cut in within(row, run)) for run in every_run(row, [drop])}
            return least_run(row, sums, limits.together)
        return least(row, scores, drop, limits.together)


def row_of(cuts: Mapping[str, list[Cut]], stacks: Sequence[str]) -> list[Cut | None]:
    """The cuts of several stacks as one row, apart from each other."""
    row: list[Cut | None] = []
    for stack in stacks:
        row += [None, *cuts[stack]] if row else cuts[stack]
    return row


def by_place(select: Select, row: Row, drop: int) -> list[Cut]:
    """The first or the last of the row, or every second one, beginning with the one before the last.

    Raises:
        UserError: the row is of several stacks, or not as long.
    """
    if None in row:
        raise UserError(f"select: {select} drops from one stack; give drop for each, as {{encoder: 1, decoder: 1}}.")
    places = {"first": range(len(row)), "last": range(len(row))[::-1], "alternate": range(len(row) - 1)[::-2]}[select]
    if drop > len(places):
        raise too_many(drop, len(places))
    return in_order(row, [cut for place in places[:drop] if (cut := row[place]) is not None])


def least(row: Row, scores: Mapping[Cut, float], drop: int, allowed: Allowed) -> list[Cut]:
    """The cuts of the lowest scores that can go together."""
    chosen: list[Cut] = []
    while len(chosen) < drop:
        # One that could not go yet may be able to after another.
        left = [cut for cut in in_order(row, scores) if cut not in chosen and allowed([*chosen, cut])]
        if not left:
            raise too_many(drop, len(chosen))
        chosen.append(min(left, key=lambda cut: scores[cut]))
    return in_order(row, chosen)


def least_run(row: Row, scores: Mapping[tuple[int, int], float], allowed: Allowed) -> list[Cut]:
    """The cuts of the run of the lowest score that can go."""
    runs = [run for run in scores if allowed(within(row, run))]
    if not runs:
        length = next((stop - start for start, stop in scores), 0)
        raise UserError(f"No run of {length or 'that many'} neighbours can be dropped here; give a smaller drop.")
    return within(row, min(runs, key=lambda run: scores[run]))


def _by_stack(row: Row) -> dict[str, list[Cut]]:
    every: dict[str, list[Cut]] = {}
    for cut in row:
        if cut is not None:
            every.setdefault(cut.stack, []).append(cut)
    return every
