"""Spend one budget on many matrices, where it lowers the predicted loss most.

Minimise Σ_ℓ d_ℓ(o_ℓ) subject to Σ_ℓ c_ℓ(o_ℓ) ≤ B, with one option o_ℓ for each matrix (or for each set of matrices
that may be solved as one), its predicted loss d and its cost c. On the lower convex hull of the options of a matrix,
the gain per cost falls from step to step. Taking the steps of all hulls in order of gain per cost therefore gives the
Lagrangian optimum (Shoham & Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE TASSP 1988).
The rest of the budget is spent on single options that still fit. Costs are bytes, parameters, multiply-accumulates or
measured time.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch

from laconic.allocate.plan import Plan
from laconic.errors import UserError, must_be
from laconic.methods import Candidate, Candidates, Method

Currency = Literal["bytes", "parameters", "macs", "latency"]
"""The unit of a budget: bytes in a file, parameters, multiply-accumulates, or measured time."""

COST: dict[Currency, Callable[[Candidate], int]] = {
    "bytes": lambda candidate: candidate.nbytes,
    "parameters": lambda candidate: candidate.parameters,
    "macs": lambda candidate: candidate.macs,
    "latency": lambda candidate: candidate.nanoseconds,
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A budget: a fraction of the cost of the dense model.

    Args:
        keep: the fraction.
        cost: returns the cost of a candidate.
        dense: cost of the dense model.
        fixed: part of `dense` that does not depend on the candidates, such as the time of other operations.

    Example:
        >>> Budget(keep=0.5, cost=COST["bytes"], dense=100, fixed=20).limit
        30
    """

    keep: float
    cost: Callable[[Candidate], int]
    dense: int
    fixed: int = 0

    @property
    def limit(self) -> int:
        """The cost that the candidates may have in sum."""
        return int(self.keep * self.dense) - self.fixed

    def too_small_error(self, smallest: int) -> UserError:
        """Return the error for a budget below `smallest`, the cost of the cheapest candidates."""
        return too_small_error(self.keep, (smallest + self.fixed) / max(self.dense, 1))


def too_small_error(keep: float, least: float) -> UserError:
    """Return the error for a `keep` below `least`, the fraction that the smallest sizes take."""
    # Rounded up, so that the value in the message is accepted.
    return must_be("keep", f"at least {ceil(1e4 * least) / 1e4:.4f}, the fraction that the smallest sizes keep", keep)


def budget_for(candidates: Iterable[Candidates], keep: float, currency: Currency) -> Budget:
    """Return the budget for a fraction of the cost of the dense matrices.

    Args:
        candidates: the candidates of each matrix.
        keep: the fraction.
        currency: the unit of the budget.

    Example:
        >>> dense = Candidate(method=None, nbytes=24, parameters=6, products=((2, 3),), loss=0.0)
        >>> budget_for([Candidates((dense,))], keep=0.5, currency="bytes").limit
        12
    """
    cost = COST[currency]
    return Budget(keep=keep, cost=cost, dense=sum(cost(offered.dense) for offered in candidates))


def check_overhead(method: Method, keep: float, dtype: torch.dtype, stored: float = 1.0) -> None:
    """Raise UserError if the method's overhead, such as the masks of pruned weights, takes all bytes of `keep`.

    Args:
        method: the method.
        keep: fraction of the bytes to keep.
        dtype: dtype of the uncompressed model.
        stored: fraction of a matrix that counts as its own; ½ for each of two tied matrices.

    Example:
        >>> from laconic.methods import Magnitude
        >>> check_overhead(Magnitude(), keep=0.01, dtype=torch.float32)
        Traceback (most recent call last):
        laconic.errors.UserError: keep must be more than 0.03125, which the masks of 'magnitude' take; got 0.01.
    """
    if keep <= (least := method.overhead(dtype) / stored):
        raise must_be("keep", f"more than {least:g}, which the masks of '{method.name}' take", keep)


Cost = Callable[[Candidate], int]
Alternatives = Sequence[Mapping[str, Candidates]]
"""Ways to compress the same matrices: each separately, or several as one. Each mapping covers all of them."""


@dataclass(frozen=True)
class Combination:
    """One candidate for each matrix of one alternative.

    Args:
        cost: the sum of their costs.
        loss: the sum of their predicted losses.
        chosen: the candidates by name.
    """

    cost: int
    loss: float
    chosen: Mapping[str, Candidate]


def combinations(alternatives: Alternatives, cost: Cost) -> list[Combination]:
    """Return the options for one set of matrices.

    For an alternative with one matrix (or group), these are all its candidates. For several, they are the combinations
    on the lower convex hull of the sum.

    Args:
        alternatives: alternative ways to compress the same matrices.
        cost: returns the cost of a candidate.
    """
    return [option for candidates in alternatives for option in _combinations(candidates, cost)]


def lower_hull(offered: Sequence[Combination]) -> list[Combination]:
    """Return the combinations on the lower convex hull of loss over cost, by rising cost and falling loss.

    Example:
        >>> points = [Combination(cost, loss, {}) for cost, loss in ((0, 3.0), (1, 2.9), (2, 1.0), (3, 2.0))]
        >>> [point.cost for point in lower_hull(points)]
        [0, 2]
    """
    hull: list[Combination] = []
    for option in sorted(offered, key=lambda option: (option.cost, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and gain(hull[-2], hull[-1]) <= gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def gain(lower: Combination, upper: Combination) -> float:
    """Return the fall of the loss per unit of cost from `lower` to `upper`; infinite if `upper` costs no more.

    Example:
        >>> gain(Combination(0, 3.0, {}), Combination(2, 1.0, {}))
        1.0
    """
    extra = upper.cost - lower.cost
    return (lower.loss - upper.loss) / extra if extra > 0 else float("inf")


def _combinations(candidates: Mapping[str, Candidates], cost: Cost) -> list[Combination]:
    single = {
        name: [Combination(cost(candidate), candidate.loss, {name: candidate}) for candidate in offered.all]
        for name, offered in candidates.items()
    }
    if len(single) == 1:
        return next(iter(single.values()))
    hulls = {name: lower_hull(offered) for name, offered in single.items()}
    combined = [_combine([hull[0] for hull in hulls.values()])]
    steps = [step for hull in hulls.values() for step in itertools.pairwise(hull)]
    # The hull of a sum takes the steps of the single hulls in order of gain; within a hull, gains fall already.
    for lower, upper in sorted(steps, key=lambda step: -gain(*step)):
        last = combined[-1]
        cost_sum, loss_sum = last.cost + upper.cost - lower.cost, last.loss + upper.loss - lower.loss
        combined.append(Combination(cost_sum, loss_sum, {**last.chosen, **upper.chosen}))
    return combined


def _combine(parts: Sequence[Combination]) -> Combination:
    candidates = {name: candidate for part in parts for name, candidate in part.chosen.items()}
    return Combination(sum(part.cost for part in parts), sum(part.loss for part in parts), candidates)


def allocate_spectrum(candidates: Mapping[str, Candidates], keep: float, currency: Currency = "bytes") -> Plan:
    """Choose one candidate for each matrix so that the sum of predicted losses is smallest within a budget.

    Args:
        candidates: the candidates of each matrix.
        keep: the budget, as a fraction of the cost of the dense matrices.
        currency: the unit of the budget.

    Raises:
        UserError: even the cheapest candidates cost more.

    Example:
        >>> from laconic.methods import Svd
        >>> def of(loss):
        ...     sizes = [(Svd(rank=1), 50, loss), (None, 100, 0.0)]
        ...     return Candidates(tuple(
        ...         Candidate(method=method, nbytes=size, parameters=size, products=(), loss=loss)
        ...         for method, size, loss in sizes
        ...     ))
        >>> allocate_spectrum({"important": of(1.0), "unimportant": of(0.1)}, keep=0.75)
        {'important': None, 'unimportant': Svd(rank=1, rank_ratio=None, multiple=8)}
    """
    chosen = choose_candidates(
        [[{name: offered}] for name, offered in candidates.items()], budget_for(candidates.values(), keep, currency)
    )
    return {name: candidate.method for name, candidate in chosen.items()}


def choose_candidates(matrix_sets: Sequence[Alternatives], budget: Budget) -> dict[str, Candidate]:
    """Choose one alternative for each set of matrices, and one candidate for each of its matrices, within a budget.

    Args:
        matrix_sets: for each set, the alternative ways to compress its matrices: each separately, or several as one.
        budget: the budget.

    Returns:
        The candidates by name.

    Raises:
        UserError: even the cheapest candidates cost more.
    """
    offered = [combinations(alternatives, budget.cost) for alternatives in matrix_sets]
    hulls = [lower_hull(options) for options in offered]
    chosen = [hull[0] for hull in hulls]
    smallest = sum(option.cost for option in chosen)
    if smallest > budget.limit:
        raise budget.too_small_error(smallest)
    left = _climb(hulls, chosen, budget.limit - smallest)
    _fill(offered, chosen, left)
    return {name: candidate for option in chosen for name, candidate in option.chosen.items()}


def _climb(hulls: Sequence[list[Combination]], chosen: list[Combination], left: int) -> int:
    """Take the steps of all hulls in order of gain, in place; return the part of the budget that is left."""
    steps = [
        (gain(lower, upper), number, index)
        for number, hull in enumerate(hulls)
        for index, (lower, upper) in enumerate(itertools.pairwise(hull))
    ]
    stuck: set[int] = set()
    for _, number, index in sorted(steps, key=lambda step: (-step[0], step[2])):
        hull = hulls[number]
        extra = hull[index + 1].cost - hull[index].cost
        # A hull is climbed step by step: once a step does not fit, those above it cannot be reached.
        if number in stuck or extra > left:
            stuck.add(number)
            continue
        chosen[number] = hull[index + 1]
        left -= extra
    return left


def _fill(offered: Sequence[list[Combination]], chosen: list[Combination], left: int) -> None:
    """Spend the rest of the budget on single options that fit, in place, in order of gain."""
    while True:
        better = [
            (gain(present, option), number, option)
            for number, (options, present) in enumerate(zip(offered, chosen, strict=True))
            for option in options
            if option.loss < present.loss and option.cost - present.cost <= left
        ]
        if not better:
            return
        _, number, option = max(better, key=lambda candidate: candidate[0])
        left -= option.cost - chosen[number].cost
        chosen[number] = option
