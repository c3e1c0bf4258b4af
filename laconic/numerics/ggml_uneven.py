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
    ends = (UNEVEN_STEPS[0], UNEVEN_STEPS[-1])
    best, d = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    whole, widest = best, d
    for clip in CLIPS:
        for end in ends:
            d, best = _take_better(groups, round_scale(clip * largest / end), d, best)
        if clip == CLIPS[0]:
            whole, widest = best, d
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


def _take_better(
    groups: Groups, candidate: Tensor, d: Tensor, best: Tensor
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
    """The better one of two scales for each group, and its error."""
    offsets = _steps(groups, candidate).mul_(candidate[:, None]).sub_(groups.W)
    errors = groups.errors(offsets)
    better = errors < best
    return torch.where(better, candidate, d), torch.where(better, errors, best)


def _steps(groups: Groups, d: Float[Tensor, " groups"]) -> Float[Tensor, "groups weights"]:
    """The steps nearest to the weights."""
    return round_steps_(groups.W * invert(d)[:, None], bits=4, uneven=True)
