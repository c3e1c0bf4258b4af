"""Water-filling: one budget over many matrices, spent where it buys the largest fall of the predicted loss.

min Σ_ℓ d_ℓ(o_ℓ) subject to Σ_ℓ c_ℓ(o_ℓ) ≤ B over one option o_ℓ for each matrix, or each group of matrices that may be
solved as one. On the lower convex hull of the options the steps have falling gain per cost, so taking all steps in
order of gain per cost is the Lagrangian optimum of the hulls (Shoham & Gersho, "Efficient bit allocation for an
arbitrary set of quantizers", IEEE TASSP 1988). What the last step leaves over is spent on single options that still
fit.
"""

import itertools
from collections.abc import Mapping, Sequence

from laconic.allocate.budget import Budget, Currency, budget_of
from laconic.allocate.option import Alternatives, Option, gain, lower_hull, options
from laconic.allocate.plan import Plan
from laconic.methods import Candidate, Candidates


def spectrum(ladders: Mapping[str, Candidates], keep: float, currency: Currency = "bytes") -> Plan:
    """One rung for each ladder, together costing at most `keep` of what the dense matrices cost.

    Raises:
        UserError: even the cheapest rungs cost more than that.
    """
    chosen = choose([[{name: ladder}] for name, ladder in ladders.items()], budget_of(ladders.values(), keep, currency))
    return {name: rung.method for name, rung in chosen.items()}


def choose(families: Sequence[Alternatives], budget: Budget) -> dict[str, Candidate]:
    """One alternative for each family, and one rung for each of its ladders, within `budget`.

    Raises:
        UserError: even the cheapest rungs cost more.
    """
    offered = [options(alternatives, budget.cost) for alternatives in families]
    hulls = [lower_hull(of_family) for of_family in offered]
    chosen = [hull[0] for hull in hulls]
    smallest = sum(option.cost for option in chosen)
    if smallest > budget.limit:
        raise budget.too_small(smallest)
    left = _climb(hulls, chosen, budget.limit - smallest)
    _fill(offered, chosen, left)
    return {name: rung for option in chosen for name, rung in option.rungs.items()}


def _climb(hulls: Sequence[list[Option]], chosen: list[Option], left: int) -> int:
    steps = [
        (gain(lower, upper), family, index)
        for family, hull in enumerate(hulls)
        for index, (lower, upper) in enumerate(itertools.pairwise(hull))
    ]
    stuck: set[int] = set()
    for _, family, index in sorted(steps, key=lambda step: (-step[0], step[2])):
        hull = hulls[family]
        extra = hull[index + 1].cost - hull[index].cost
        # A hull is climbed option by option: once a step does not fit, the ones above it cannot be reached.
        if family in stuck or extra > left:
            stuck.add(family)
            continue
        chosen[family] = hull[index + 1]
        left -= extra
    return left


def _fill(offered: Sequence[list[Option]], chosen: list[Option], left: int) -> None:
    while True:
        better = [
            (gain(chosen[family], option), family, option)
            for family, of_family in enumerate(offered)
            for option in of_family
            if option.loss < chosen[family].loss and option.cost - chosen[family].cost <= left
        ]
        if not better:
            return
        _, family, option = max(better, key=lambda candidate: candidate[0])
        left -= option.cost - chosen[family].cost
        chosen[family] = option
