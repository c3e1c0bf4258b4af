"""The scale of each group of weights that is rounded to the sixteen uneven steps of llama.cpp's type `iq4_nl`.

A weight w is stored as one of the steps q, and stands for d q. With e = w − d q the error of a group is, as in
`laconic.numerics.grid`,

    Σ h_j e_j² + (a − 1) (Σ h_j e_j w_j)² / Σ h_j w_j²,

ranges from the whole span of the group down to a part of it are tried, each with either end of the steps at the largest
weight, and then the d of least error for the codes found is taken, a few times.

Notation: W (k, g), k groups of g weights each; h importance of each weight; d (k,).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.grid import MARGIN
from laconic.numerics.grid_search import CLIPS, REFINEMENTS, Groups, invert, round_scale
from laconic.numerics.rounding import UNEVEN_STEPS, round_steps_

BOUNDED_FROM = 3
"""The number of the range from which on groups leave the search."""


def fit_uneven(groups: Groups) -> Float[Tensor, " groups"]:
    """The d of least error of each group.

    Args:
        groups: the groups.

    Example:
        >>> W = torch.tensor([UNEVEN_STEPS]) / 64
        >>> fit_uneven(Groups.of(W, torch.ones_like(W), along=1.0)).item() * 64
        1.0
    """
    largest = groups.W.gather(1, groups.W.abs().argmax(1, keepdim=True))[:, 0]
    d, best, whole, widest = _search(groups, largest)
    found = d
    for _ in range(REFINEMENTS):
        q = _steps(groups, found)
        product, norm = (groups.weigh(q).mul_(factor).sum(1) for factor in (groups.W, q))
        if groups.along != 1:
            norm, product = norm + (groups.along - 1) * product.square() / groups.size, groups.along * product
        found = round_scale(torch.where(norm > 0, product / norm.clamp(min=1e-30), found))
        d, best = _take_better(groups, found, d, best)
    # If the inputs are unknown, clipping must save much.
    return d if groups.along == 1 else torch.where(best < (1 - MARGIN) * whole, d, widest)


def _search(groups: Groups, largest: Float[Tensor, " groups"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The d of least error among all ranges and its error; then the error of the widest range and its d.

    A narrower range does not bring the weights outside the steps closer to the outermost one. A group leaves the search
    when their errors alone are larger than its least error.
    """
    best, d = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    whole, widest = best, d
    which, left = torch.arange(len(largest), device=largest.device), groups
    for k, clip in enumerate(CLIPS):
        tried = [round_scale(clip * largest[which] / end) for end in (UNEVEN_STEPS[0], UNEVEN_STEPS[-1])]
        mine, least = d[which], best[which]
        for candidate in tried:
            mine, least = _take_better(left, candidate, mine, least)
        d, best = d.index_copy(0, which, mine), best.index_copy(0, which, least)
        if k == 0:
            whole, widest = best, d
        if k >= BOUNDED_FROM and (k - BOUNDED_FROM) % 2 == 0:
            outside = torch.minimum(*(_errors_outside(left, candidate) for candidate in tried))
            # A little less, for rounding errors of the sums.
            remain = (outside * (1 - 1e-4) < least).nonzero()[:, 0]
            if not len(remain):
                break
            if 2 * len(remain) < len(which):
                which, left = which[remain], left.take(remain)
    return d, best, whole, widest


def _errors_outside(groups: Groups, d: Float[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    """The error of the weights that lie outside the steps."""
    u = torch.mul(groups.W, invert(d)[:, None], out=groups.work[0])
    inside = torch.clamp(u, UNEVEN_STEPS[0], UNEVEN_STEPS[-1], out=groups.work[1])
    outside = u.sub_(inside).mul_(d[:, None])
    return groups.weigh(outside).mul_(outside).sum(1)


def _take_better(
    groups: Groups, candidate: Tensor, d: Tensor, best: Tensor
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
    """The better one of two scales for each group, and its error."""
    offsets = _steps(groups, candidate).mul_(candidate[:, None]).sub_(groups.W)
    errors = groups.errors(offsets)
    better = errors < best
    return torch.where(better, candidate, d), torch.where(better, errors, best)


def _steps(groups: Groups, d: Float[Tensor, " groups"]) -> Float[Tensor, "groups weights"]:
    """The steps nearest to the weights, in memory that the next call uses again."""
    return round_steps_(torch.mul(groups.W, invert(d)[:, None], out=groups.work[0]), bits=4, uneven=True)
