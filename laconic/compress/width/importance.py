"""In which order the heads of an attention, or the channels of a feed-forward, go, and what each costs as it goes.

magnitude:      the squared norm of a part's weights, in all the projections it has a share in.
taylor:         E|∂L/∂ξ| of its gate (Michel et al. 2019); taylor-squared: E(∂L/∂ξ)² (Molchanov et al. 2019).
variance:       Σ ‖W_:j‖² Var(x_j) over its columns j of the output projection, which reads x: FLAP (Y. An et al.,
                "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024, equation 5).
obs:            what the predicted KL divergence loses in a model that is refitted, one part after another
                (`laconic.numerics.structured`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, Mean, Problem, Statistic
from laconic.calibrate.gradient_gates import GateGradients
from laconic.model.prunable_group import CoupledGroups, PrunableGroup
from laconic.numerics.psd import shrink
from laconic.numerics.structured import Elimination, damped, removals

Importance = Literal["magnitude", "taylor", "taylor-squared", "variance", "obs"]

NEEDS: dict[Importance, frozenset[type[Statistic]]] = {
    "magnitude": frozenset(),
    "taylor": frozenset(),
    "taylor-squared": frozenset(),
    "variance": frozenset({InputCovariance, Mean}),
    "obs": frozenset({InputCovariance, Mean, GradCovariance}),
}
"""What each asks to be measured of the output projection; the two kinds of taylor ask for `GateGradients` instead."""

BY_GATES: frozenset[Importance] = frozenset({"taylor", "taylor-squared"})

SHRINK = 0.1
"""Of F, towards its mean diagonal, as `kfac-svd` does."""


@dataclass(frozen=True)
class Removal:
    """The first of the `count` parts of a family to go, in order, and what each costs then."""

    order: tuple[int, ...]
    costs: tuple[float, ...]
    count: int

    def kept(self, count: int) -> list[int]:
        """The numbers of the parts that are left when `count` are, in ascending order."""
        return sorted(set(range(self.count)) - set(self.order[: self.count - count]))


def removal(
    importance: Importance,
    family: CoupledGroups,
    problems: Sequence[Problem],
    gates: Mapping[str, GateGradients],
    least: int = 1,
) -> Removal:
    """What `importance` says of `family`, until `least` parts are left, with the problem of each output projection."""
    if importance == "obs":
        eliminations = [
            Elimination(
                problem.weight,
                damped(problem.known[InputCovariance].matrix),
                shrink(problem.known[GradCovariance].matrix, SHRINK),
                inner.size,
            )
            for inner, problem in zip(family, problems, strict=True)
        ]
        parts, costs = removals(eliminations, least)
        return Removal(tuple(parts), tuple(costs), family[0].count)
    scores = _scores(importance, family, problems, gates).cpu()
    order = scores.argsort(stable=True)[: len(scores) - least]
    return Removal(tuple(order.tolist()), tuple(scores[order].tolist()), len(scores))


def _scores(
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
    """Of the weights of each part, in fp64."""
    total = inner.writer.weight().double().square().sum(0).reshape(inner.count, -1).sum(1)
    for site, stacked in inner.readers:
        total += site.weight().double().reshape(stacked, inner.count, -1).square().sum((0, 2))
    return total


def fluctuations(problem: Problem, count: int) -> Float[Tensor, " parts"]:
    """Σ_j ‖W_:j‖² Var(x_j) over the columns j of each part."""
    variance = problem.known[InputCovariance].matrix.diagonal()
    if problem.means is None:
        variance = variance - problem.known[Mean].vector.square()
    each = problem.weight.double().square().sum(0) * variance.clamp(min=0)
    return each.reshape(count, -1).sum(1)
