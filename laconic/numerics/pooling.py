"""Moments of experts that saw few tokens, shrunk towards a moment that the tokens of the whole layer give.

With fewer rows than columns a moment is singular, and a solution that fits it puts its errors where the few tokens had
nothing. An expert with n rows is therefore treated as if it had κ rows more, with the shared moment S:

    C ← (n C + κ S) / (n + κ)

This is a linear shrinkage estimator (O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", J. Multivariate Analysis 2004, equation 2, whose target is a multiple of the identity).

Notation: C, F and S moments of one row, or their diagonals, in fp64; n and κ numbers of rows.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Moments = Float[Tensor, "experts *shape"]
Rows = Float[Tensor, " experts"] | Int[Tensor, " experts"]


def shrink_towards(C: Float[Tensor, "*shape"], S: Float[Tensor, "*shape"], n: int, kappa: int) -> Tensor:
    """(n C + κ S) / (n + κ).

    Args:
        C: the moment of one expert.
        S: the shared moment.
        n: the number of rows of the expert.
        kappa: κ, above 0.

    Example:
        >>> shrink_towards(torch.tensor([1.0]), torch.tensor([4.0]), n=2, kappa=1)
        tensor([2.])
    """
    return (n * C + kappa * S) / (n + kappa)


def pool_moments(totals: Moments, n: Rows) -> Float[Tensor, "*shape"]:
    """The moment of one row of the layer: Σ_e total_e / Σ_e n_e; 0 if there is no row.

    Args:
        totals: the sums over the rows of each expert.
        n: the number of rows of each expert, or their weight.

    Example:
        >>> pool_moments(torch.tensor([[8.0], [4.0]]), torch.tensor([2, 4])).tolist()
        [2.0]
    """
    return totals.sum(0) / (n.sum().item() or 1)


def isotropic_moments(S: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """mean(diag S) I, or the mean of a diagonal moment for each entry.

    It is the target for outputs of different experts that have nothing in common but their size.

    Example:
        >>> isotropic_moments(torch.tensor([[1.0, 5.0], [5.0, 3.0]])).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    if S.ndim == 1:
        return S.mean().expand_as(S)
    return S.diagonal().mean() * torch.eye(len(S), dtype=S.dtype, device=S.device)
