"""What may become of matrices that are decided on together, and the lower convex hull of loss over cost."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from laconic.methods import Candidate, Candidates

Cost = Callable[[Candidate], int]
Alternatives = Sequence[Mapping[str, Candidates]]
"""Ways to present the same matrices: each by itself, or as one. Every mapping covers all of them."""


@dataclass(frozen=True)
class Option:
    """One rung for each ladder of one of the alternatives."""

    cost: int
    loss: float
    rungs: Mapping[str, Candidate]


def options(alternatives: Alternatives, cost: Cost) -> list[Option]:
    """Every rung where a ladder stands alone; of several, the combinations on their common hull."""
    return [option for ladders in alternatives for option in _combinations(ladders, cost)]


def lower_hull(offered: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of loss over cost, cheapest first; the loss falls from each to the next."""
    hull: list[Option] = []
    for option in sorted(offered, key=lambda option: (option.cost, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and gain(hull[-2], hull[-1]) <= gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def gain(lower: Option, upper: Option) -> float:
    """Fall of the loss per unit of cost between two options; infinite where it costs nothing."""
    extra = upper.cost - lower.cost
    return (lower.loss - upper.loss) / extra if extra > 0 else float("inf")


def _combinations(ladders: Mapping[str, Candidates], cost: Cost) -> list[Option]:
    single = {
        name: [Option(cost(rung), rung.loss, {name: rung}) for rung in ladder.rungs] for name, ladder in ladders.items()
    }
    if len(single) == 1:
        return next(iter(single.values()))
    hulls = {name: lower_hull(offered) for name, offered in single.items()}
    combined = [_together([hull[0] for hull in hulls.values()])]
    steps = [step for hull in hulls.values() for step in itertools.pairwise(hull)]
    # The hull of a sum is made of the steps of the single hulls in order of gain; each hull's own fall already.
    for lower, upper in sorted(steps, key=lambda step: -gain(*step)):
        here = combined[-1]
        cost_now, loss_now = here.cost + upper.cost - lower.cost, here.loss + upper.loss - lower.loss
        combined.append(Option(cost_now, loss_now, {**here.rungs, **upper.rungs}))
    return combined


def _together(parts: Sequence[Option]) -> Option:
    rungs = {name: rung for part in parts for name, rung in part.rungs.items()}
    return Option(sum(part.cost for part in parts), sum(part.loss for part in parts), rungs)
