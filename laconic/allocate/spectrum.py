"""Water-filling: one budget over many matrices, spent where a byte buys the largest fall of the predicted loss.

min Σ_ℓ d_ℓ(o_ℓ) subject to Σ_ℓ c_ℓ(o_ℓ) ≤ B over one rung o_ℓ per ladder. On the lower convex hull of each ladder the
steps have falling gain per cost, so taking all steps in order of gain per cost is the Lagrangian optimum of the hulls
(Shoham & Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE TASSP 1988). What the last step
leaves over is spent on single rungs that still fit.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Literal

from laconic.allocate.plan import Plan
from laconic.errors import must_be
from laconic.methods import Ladder, Rung

Currency = Literal["bytes", "parameters", "macs"]

COST: dict[Currency, Callable[[Rung], int]] = {
    "bytes": lambda rung: rung.nbytes,
    "parameters": lambda rung: rung.parameters,
    "macs": lambda rung: rung.macs,
}


def spectrum(ladders: Mapping[str, Ladder], keep: float, currency: Currency = "bytes") -> Plan:
    """One rung for each ladder, together costing at most `keep` of what the dense matrices cost.

    Raises:
        UserError: even the cheapest rungs cost more than that.
    """
    return {name: rung.method for name, rung in choose(ladders, keep, currency).items()}


def choose(ladders: Mapping[str, Ladder], keep: float, currency: Currency = "bytes") -> dict[str, Rung]:
    """As `spectrum`, with the chosen rungs themselves."""
    cost = COST[currency]
    dense = sum(next(cost(rung) for rung in ladder.rungs if rung.method is None) for ladder in ladders.values())
    hulls = {name: lower_hull(ladder, cost) for name, ladder in ladders.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = int(keep * dense) - sum(cost(rung) for rung in chosen.values())
    if left < 0:
        least = sum(cost(rung) for rung in chosen.values()) / max(dense, 1)
        raise must_be("keep", f"at least {least:.4f}, which the smallest sizes on offer here keep", keep)
    left = _climb(hulls, chosen, left, cost)
    _fill(ladders, chosen, left, cost)
    return chosen


def lower_hull(ladder: Ladder, cost: Callable[[Rung], int]) -> list[Rung]:
    """The rungs on the lower convex hull of loss over cost, cheapest first; the loss falls from each to the next."""
    hull: list[Rung] = []
    for rung in sorted(ladder.rungs, key=lambda rung: (cost(rung), rung.loss)):
        if hull and rung.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1], cost) <= _gain(hull[-1], rung, cost):
            hull.pop()
        hull.append(rung)
    return hull


def _gain(lower: Rung, upper: Rung, cost: Callable[[Rung], int]) -> float:
    """Fall of the loss per unit of cost between two rungs; infinite where it costs nothing."""
    extra = cost(upper) - cost(lower)
    return (lower.loss - upper.loss) / extra if extra > 0 else float("inf")


def _climb(hulls: Mapping[str, list[Rung]], chosen: dict[str, Rung], left: int, cost: Callable[[Rung], int]) -> int:
    steps = [
        (_gain(lower, upper, cost), name, index)
        for name, hull in hulls.items()
        for index, (lower, upper) in enumerate(itertools.pairwise(hull))
    ]
    stuck: set[str] = set()
    for _, name, index in sorted(steps, key=lambda step: (-step[0], step[2])):
        extra = cost(hulls[name][index + 1]) - cost(hulls[name][index])
        # A ladder is climbed rung by rung: once a step does not fit, the ones above it cannot be reached.
        if name in stuck or extra > left:
            stuck.add(name)
            continue
        chosen[name] = hulls[name][index + 1]
        left -= extra
    return left


def _fill(ladders: Mapping[str, Ladder], chosen: dict[str, Rung], left: int, cost: Callable[[Rung], int]) -> None:
    while True:
        better = [
            (_gain(chosen[name], rung, cost), name, rung)
            for name, ladder in ladders.items()
            for rung in ladder.rungs
            if rung.loss < chosen[name].loss and cost(rung) - cost(chosen[name]) <= left
        ]
        if not better:
            return
        _, name, rung = max(better, key=lambda option: option[0])
        left -= cost(rung) - cost(chosen[name])
        chosen[name] = rung
