"""Rank the heads of an attention or the channels of a feed-forward, and decide how many of each layer stay.

A *part* is an attention head (or the heads that share keys and values) or a feed-forward channel. Its importance is one
of the following. `magnitude`: the squared norm of its weights in all projections. `taylor`: E|∂L/∂ξ| of a gate ξ on the
part (Michel et al. 2019). `taylor-squared`: E(∂L/∂ξ)² (Molchanov et al. 2019). `variance`: Σ ‖W_:j‖² Var(x_j) over the
columns j of the part in the output projection W with input x (FLAP: Y. An et al., "Fluctuation-based Adaptive
Structured Pruning for Large Language Models", AAAI 2024, equation 5). `obs`: the increase of the predicted KL
divergence when parts are removed one after another and the rest is refitted (`laconic.numerics.structured`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.allocate.uniform import CLOSE
from laconic.calibrate import GradCovariance, InputCovariance, Mean, Problem, Statistic
from laconic.calibrate.collect_stats import GateGradients
from laconic.calibrate.passes import USUAL
from laconic.model.prunable_group import CoupledGroups, PrunableGroup
from laconic.model.site import Group
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


Currency = Literal["bytes", "macs"]

Price = Callable[[CoupledGroups], int]
"""Returns the price of one part of coupled groups."""


def price_function(currency: Currency) -> Price:
    """Return a function for the price of one part.

    The price is the number of parameters for `bytes`. For `macs` it is the number of multiply-accumulates per token,
    which for a head includes attention over a row of the default length.
    """

    def price(family: CoupledGroups) -> int:
        stored = sum(inner.parameters for inner in family)
        if currency == "bytes" or family[0].group is Group.FFN:
            return stored
        return stored + sum(2 * inner.size * USUAL.length for inner in family)

    return price


def chunk_size(family: CoupledGroups, multiple: int) -> int:
    """Return how many parts are removed at once.

    Args:
        family: coupled groups.
        multiple: number of channels that are removed at once; heads, and channels of a layer with fewer than twice as
            many, are removed one by one.
    """
    return multiple if family[0].group is Group.FFN and family[0].count >= 2 * multiple else 1


def parts_kept(family: CoupledGroups, keep: float, multiple: int) -> int:
    """Return the number of parts to keep, at least 1.

    Heads are rounded to the nearest number, channels down to a multiple. If that removes over 1 % more than asked for,
    the multiple is halved, down to single channels.

    Args:
        family: coupled groups.
        keep: fraction of the parts to keep.
        multiple: the number of channels kept is a multiple of this.
    """
    count, chunk = family[0].count, chunk_size(family, multiple)
    if keep == 1:
        return count
    if family[0].group is Group.ATTENTION:
        return max(1, int(keep * count + 0.5))
    wanted = int(keep * count + 1e-9)
    while chunk > 1 and wanted // chunk * chunk < (1 - CLOSE) * keep * count:
        chunk //= 2
    return max(1, wanted // chunk * chunk)


def uniform_counts(families: Sequence[CoupledGroups], keeps: Mapping[Group, float], multiple: int) -> dict[str, int]:
    """Return the number of parts to keep if every layer keeps the same fraction, by `PrunableGroup.coupling`.

    Args:
        families: coupled groups of all layers.
        keeps: fraction to keep of heads and of channels.
        multiple: the number of channels kept is a multiple of this.
    """
    return {family[0].coupling: parts_kept(family, keeps[family[0].group], multiple) for family in families}


def global_counts(
    several: Sequence[tuple[CoupledGroups, RemovalOrder]], keeps: Mapping[Group, float], price: Price, multiple: int
) -> dict[str, int]:
    """Return the number of parts to keep if parts of all layers compete, by `PrunableGroup.coupling`.

    Heads compete with heads, and channels with channels.

    Args:
        several: coupled groups, each with the order in which its parts are removed.
        keeps: fraction of the parts kept, of heads and of channels.
        price: the price of one part.
        multiple: channels that are removed at once.
    """
    counts: dict[str, int] = {}
    for group, keep in keeps.items():
        mine = [(family, of) for family, of in several if family[0].group is group]
        counts |= share_budget(mine, keep, price, multiple)
    return counts


@dataclass(frozen=True)
class _Chunk:
    """Parts of one layer that are removed together: their number, the price saved, and the importance per price."""

    family: str
    parts: int
    saves: int
    rate: float

    @property
    def each(self) -> int:
        """The price of a single part."""
        return self.saves // self.parts


def share_budget(
    several: Sequence[tuple[CoupledGroups, RemovalOrder]], keep: float, price: Price, multiple: int
) -> dict[str, int]:
    """Return the number of parts to keep if parts are removed in order of importance per price.

    Parts are removed until at most `keep` of the total price stays. Every layer keeps at least one part, so more may
    stay. If over 1 % less than `keep` would stay, parts are restored one by one, beginning with the last removed.

    Args:
        several: coupled groups, each with the order in which its parts are removed.
        keep: fraction of the price of all parts that stays.
        price: the price of one part.
        multiple: channels that are removed at once.

    Returns:
        Counts by `PrunableGroup.coupling`.
    """
    whole = sum(price(family) * family[0].count for family, _ in several)
    excess = whole - int(keep * whole + 1e-6)
    chunks = [
        chunk
        for family, removal in several
        for chunk in _make_chunks(family[0].coupling, removal, price(family), chunk_size(family, multiple))
    ]
    counts = {family[0].coupling: family[0].count for family, _ in several}
    gone: list[_Chunk] = []
    # The sort is stable and the rates of a family never fall, so the order within a family is kept.
    for chunk in sorted(chunks, key=lambda chunk: chunk.rate):
        if excess <= 0:
            break
        gone.append(chunk)
        counts[chunk.family] -= chunk.parts
        excess -= chunk.saves
    if -excess > CLOSE * keep * whole:
        for chunk in reversed(gone):
            back = min(chunk.parts, -excess // chunk.each)
            counts[chunk.family] += back
            excess += back * chunk.each
    return counts


def _make_chunks(family: str, removal: RemovalOrder, price: int, size: int) -> list[_Chunk]:
    """Divide the removable parts into chunks, in order; the first chunk is smaller if needed to leave a multiple."""
    count = removal.count
    ends = range(count % size or size, count - size + 1, size)
    chunks, begin, rate = [], 0, 0.0
    for end in ends:
        rate = max(rate, sum(removal.costs[begin:end]) / (price * (end - begin)))
        chunks.append(_Chunk(family, end - begin, price * (end - begin), rate))
        begin = end
    return chunks


def standardise_costs(removals: Sequence[RemovalOrder], prices: Sequence[int]) -> list[RemovalOrder]:
    """Replace costs by standard scores within each layer, shifted to a minimum of zero, times the price of a part.

    FLAP compares layers by standard scores and ignores the price of a part. The caller divides costs by the price, so
    multiplying here cancels that.

    Args:
        removals: the removal order of each layer, with costs.
        prices: the price of a part in each layer.
    """
    found = [_standardise(removal.costs) for removal in removals]
    least = min((cost for costs in found for cost in costs), default=0.0)
    return [
        replace(removal, costs=tuple(price * (cost - least) for cost in costs))
        for removal, costs, price in zip(removals, found, prices, strict=True)
    ]


def _standardise(costs: Sequence[float]) -> tuple[float, ...]:
    mean = fmean(costs) if costs else 0.0
    spread = pstdev(costs) if costs else 0.0
    return tuple((cost - mean) / spread if spread > 0 else 0.0 for cost in costs)
