"""Rank and remove the parts of an attention or feed-forward, and refit its output projection.

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

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Mean, Means, Problem, Statistic
from laconic.calibrate.gates import GateGradients
from laconic.model import LanguageModel
from laconic.model.prunable_group import CoupledGroups, PrunableGroup
from laconic.model.width import keep_parts
from laconic.numerics.moments import shrink
from laconic.numerics.structured import Elimination, damp_active, part_columns, refit_columns, removal_order

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
    coupled: CoupledGroups,
    problems: Sequence[Problem],
    gates: Mapping[str, GateGradients],
    least: int = 1,
) -> RemovalOrder:
    """Rank the parts of coupled groups until `least` parts are left.

    Args:
        importance: how parts are ranked.
        coupled: groups that lose the same parts.
        problems: the problem of the output projection of each group.
        gates: gradients of the gates, by `PrunableGroup.coupling`.
        least: parts that always stay.
    """
    if importance in BY_GATES:
        return rank_parts([gate_scores(importance, gates[coupled[0].coupling])], least)
    pairs = zip(coupled, problems, strict=True)
    return rank_parts([measure_parts(importance, group, problem) for group, problem in pairs], least)


Measured = Elimination | Float[Tensor, " parts"]
"""The importance of the parts of one group: the matrix that loses them one by one, or a score for each."""


def measure_parts(importance: Importance, group: PrunableGroup, problem: Problem) -> Measured:
    """Measure the parts of one group, by its weights or the statistics of its output projection.

    Args:
        importance: how parts are ranked, but not by gates.
        group: the attention or feed-forward.
        problem: the problem of its output projection.
    """
    if importance == "obs":
        covariance, gradients = (problem.stats[kind].matrix for kind in (InputCovariance, GradCovariance))
        return Elimination(problem.weight, damp_active(covariance), shrink(gradients, SHRINK), group.size)
    return squared_norms(group) if importance == "magnitude" else fluctuations(problem, group.count)


def gate_scores(importance: Importance, gates: GateGradients) -> Float[Tensor, " parts"]:
    """The score of each part of coupled groups by the gradients of their gates."""
    return gates.absolute if importance == "taylor" else gates.squared


def rank_parts(measured: Sequence[Measured], least: int = 1) -> RemovalOrder:
    """Rank the parts of coupled groups until `least` parts are left.

    Args:
        measured: the importance of the parts in each group.
        least: parts that always stay.
    """
    eliminations = [each for each in measured if isinstance(each, Elimination)]
    if eliminations:
        parts, costs = removal_order(eliminations, least)
        return RemovalOrder(tuple(parts), tuple(costs), eliminations[0].count)
    scores = torch.stack([each for each in measured if isinstance(each, Tensor)]).sum(0).cpu()
    order = scores.argsort(stable=True)[: len(scores) - least]
    return RemovalOrder(tuple(order.tolist()), tuple(scores[order].tolist()), len(scores))


def squared_norms(group: PrunableGroup) -> Float[Tensor, " parts"]:
    """Return the squared norm of the weights of each part, (parts,), in fp64."""
    total = group.writer.weight().double().square().sum(0).reshape(group.count, -1).sum(1)
    for reader in group.readers:
        stacked, _ = reader.split(reader.site.weight().double(), group.count)
        for rows in stacked:
            total += rows.flatten(1).square().sum(1)
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
    column_scores = problem.weight.double().square().sum(0) * variance.clamp(min=0)
    return column_scores.reshape(count, -1).sum(1)


def output_problems(coupled: CoupledGroups, stats: Mapping[str, LayerStats], add_bias: bool) -> list[Problem]:
    """Build the problem of the output projection of each coupled group.

    Args:
        coupled: groups that lose the same parts.
        stats: statistics by layer name; layers without any get empty ones.
        add_bias: give a bias to projections that have none.
    """
    return [_output_problem(group, stats.get(group.writer.name, LayerStats()), add_bias) for group in coupled]


def _output_problem(group: PrunableGroup, stats: LayerStats, add_bias: bool) -> Problem:
    # If the bias may be adjusted, the covariance is centred, and the mean output is kept.
    site = group.writer
    weight, bias = site.weight(), site.bias()
    if not (add_bias or bias is not None) or InputCovariance not in stats:
        return Problem(weight=weight, stats=stats)
    gram, mean = stats[InputCovariance], stats[Mean].vector
    means = Means(mean, weight.double() @ mean + (0 if bias is None else bias.detach().double()))
    centred = InputCovariance.from_moment(gram.matrix - torch.outer(mean, mean), gram.count)
    return Problem(weight=weight, stats=stats | LayerStats([centred]), means=means)


def remove_parts(
    lm: LanguageModel, group: PrunableGroup, problem: Problem, parts: Sequence[int], *, refit: bool, centre: bool
) -> None:
    """Remove all but some parts of an attention or feed-forward.

    Args:
        lm: the model, changed in place.
        group: the attention or feed-forward.
        problem: the problem of its output projection.
        parts: numbers of the parts that stay.
        refit: fit the columns that stay, and the bias, by least squares.
        centre: without `refit`, adjust the bias so that the mean output stays, if the problem has means.
    """
    columns = part_columns(parts, group.size).to(problem.weight.device)
    weight = problem.weight[:, columns]
    if refit:
        # Round to the stored dtype first, so that the bias also compensates for the rounding.
        weight = refit_columns(problem.weight, damp_active(problem.stats[InputCovariance].matrix), columns).to(lm.dtype)
    bias = None
    if problem.means is not None and (refit or centre):
        bias = problem.means.y - weight.double() @ problem.means.x[columns]
    keep_parts(lm, group, parts, weight, bias)
