"""Singular values, and how many of them a matrix really has.

Effective rank: O. Roy & M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, eq. 4:
exp H(p) with p_i = σ_i / Σσ, H the entropy in nats. It is k for k equal singular values and 1 for a matrix of rank one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.psd import RELATIVE_FLOOR

ROWS = 4096
"""Rows that are multiplied at a time."""


def singular_values(W: Float[Tensor, "out in"]) -> Float[Tensor, " k"]:
    """All min(out, in) of them, falling: roots of the eigenvalues of the smaller of W Wᵀ and Wᵀ W, in fp64.

    Those below 10⁻⁶ of the largest, where squaring leaves noise, come out as zero.
    """
    tall = W.detach() if W.shape[0] >= W.shape[1] else W.detach().T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=W.device)
    for rows in tall.split(ROWS):
        part = rows.double()
        gram += part.T @ part
    squares = torch.linalg.eigvalsh(gram).flip(0)
    return torch.where(squares > RELATIVE_FLOOR * squares[0], squares, 0).clamp(min=0).sqrt()


def effective_rank(s: Float[Tensor, " k"]) -> float:
    """exp H(σ / Σσ); 0 for a matrix of zeros."""
    if not s.any():
        return 0.0
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())


def energy_rank(s: Float[Tensor, " k"], energy: float) -> int:
    """The least rank whose singular values hold this fraction of Σσ²; 0 for a matrix of zeros."""
    squares = s.square()
    if not s.any():
        return 0
    held = squares.cumsum(0) / squares.sum()
    # Rounding must not ask for one more than all.
    return min(int((held < energy - 1e-12).sum()) + 1, len(s))
