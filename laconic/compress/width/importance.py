"""Rank the heads of an attention or the channels of a feed-forward.

A *part* is an attention head (or the heads that share keys and values) or a feed-forward channel. Its importance is one
of the following. `magnitude`: the squared norm of its weights in all projections. `taylor`: E|∂L/∂ξ| of a gate ξ on the
part (Michel et al. 2019). `taylor-squared`: E(∂L/∂ξ)² (Molchanov et al. 2019). `variance`: Σ ‖W_:j‖² Var(x_j) over the
columns j of the part in the output projection W with input x (FLAP: Y. An et al., "Fluctuation-based Adaptive
Structured Pruning for Large Language Models", AAAI 2024, equation 5). `obs`: the increase of the predicted KL
divergence when parts are removed one after another and the rest is refitted (`laconic.numerics.structured`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, Mean, Problem, Statistic
from laconic.calibrate.collect_stats import GateGradients
from laconic.model.prunable_group import CoupledGroups, PrunableGroup
from laconic.numerics.moments import shrink
from laconic.numerics.structured import Elimination, damp_active, removal_order

Importance = Literal["magnitude", "taylor", "taylor-squared", "variance", "obs"]

NEEDS: dict[Importance, frozenset[type[Statistic]]] = {
    "magnitude": frozenset(),
    "taylor": frozenset(),
    "taylor-squared": frozenset(),
    "variance": frozenset({InputCovariance, Mean}),
    "obs": frozenset({InputCovariance, Mean, GradCovariance}),
}
"""The statistics of the output projection that each importance needs; the taylor kinds need `GateGradients` instead."""

BY_GATES: frozenset[Importance] = frozenset({"taylor", "taylor-squared"})

SHRINK = 0.1
"""Shrinkage of F towards its mean diagonal, the same as in `kfac-svd`."""


@dataclass(frozen=True)
class RemovalOrder:
    """The order in which the parts of an attention or feed-forward are removed.

    Args:
        order: numbers of the parts, the first to be removed first; parts that always stay are missing.
        costs: the importance of each part of `order` when it is removed.
        count: parts before anything is removed.

    Example:
        >>> RemovalOrder(order=(2, 0), costs=(0.1, 0.5), count=3).parts_left(2)
        [0, 1]
    """

    order: tuple[int, ...]
    costs: tuple[float, ...]
    count: int

    def parts_left(self, count: int) -> list[int]:
        """Return the numbers of the parts that stay, in ascending order.

        Args:
            count: how many parts stay.
        """
        return sorted(set(range(self.count)) - set(self.order[: self.count - count]))


def order_removals(
    importance: Importance,
    family: CoupledGroups,
    problems: Sequence[Problem],
    gates: Mapping[str, GateGradients],
    least: int = 1,
) -> RemovalOrder:
    """Rank the parts of coupled groups until `least` parts are left.

    Args:
        importance: how parts are ranked.
        family: groups that lose the same parts.
        problems: the problem of the output projection of each group.
        gates: gradients of the gates, by `PrunableGroup.coupling`.
        least: parts that always stay.
    """
    if importance == "obs":
        eliminations = [
            Elimination(
                problem.weight,
                damp_active(problem.stats[InputCovariance].matrix),
                shrink(problem.stats[GradCovariance].matrix, SHRINK),
                inner.size,
            )
            for inner, problem in zip(family, problems, strict=True)
        ]
        parts, costs = removal_order(eliminations, least)
        return RemovalOrder(tuple(parts), tuple(costs), family[0].count)
    scores = _compute_scores(importance, family, problems, gates).cpu()
    order = scores.argsort(stable=True)[: len(scores) - least]
    return RemovalOrder(tuple(order.tolist()), tuple(scores[order].tolist()), len(scores))


def _compute_scores(
    importance: Importance, family: CoupledGroups, problems: Sequence[Problem], gates: Mapping[str, GateGradients]
) -> Float[Tensor, " parts"]:
    if importance == "taylor":
        return gates[family[0].coupling].absolute
    if importance == "taylor-squared":
        return gates[family[0].coupling].squared
    if importance == "magnitude":
        return torch.stack([squared_norms(inner) for inner in family]).sum(0)
    pairs = zip(family, problems, strict=True)
    return torch.stack([fluctuations(problem, inner.count) for inner, problem in pairs]).sum(0)


def squared_norms(inner: PrunableGroup) -> Float[Tensor, " parts"]:
    """Return the squared norm of the weights of each part, (parts,), in fp64."""
    total = inner.writer.weight().double().square().sum(0).reshape(inner.count, -1).sum(1)
    for site, stacked in inner.readers:
        total += site.weight().double().reshape(stacked, inner.count, -1).square().sum((0, 2))
    return total


def fluctuations(problem: Problem, count: int) -> Float[Tensor, " parts"]:
    """Return Σ_j ‖W_:j‖² Var(x_j) over the columns j of each part, (parts,).

    Args:
        problem: the problem of the output projection.
        count: number of parts.
    """
    variance = problem.stats[InputCovariance].matrix.diagonal()
    if problem.means is None:
        variance = variance - problem.stats[Mean].vector.square()
    each = problem.weight.double().square().sum(0) * variance.clamp(min=0)
    return each.reshape(count, -1).sum(1)
