"""What is left of a weight's effect once the others make up for it, where only some of these stay.

Of a weight in row i and column j, with the curvature A = F ⊗ H, removal costs ½ w² / [A^{-1}]_(ij)(ij) where all other
weights are there to make up for it, and ½ w² F_ii H_jj where none is. In between let each of the others be missing with
probability s, and count 1 / (1 − s) times where it is not. Their second moment is then A + γ diag A in expectation,
γ = s / (1 − s), as in dropout (S. Wager, S. Wang, P. Liang, "Dropout Training as Adaptive Regularization", NeurIPS
2013), while that with the weight itself is as before, so that the least expected cost is ½ w² v_ij with the Schur
complement

    v_ij = 1 / [(A + γ diag A)^{-1}]_(ij)(ij) − γ F_ii H_jj.

With the correlations U Λ U^T of F and V M V^T of H that is F_ii H_jj (1 / Σ_ab U_ia² V_jb² / (λ_a μ_b + γ) − γ): two
products of matrices once the eigenvectors are known.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.psd import RELATIVE_FLOOR, Moment, eigh


class Correlations(NamedTuple):
    """diag S, the eigenvalues of the correlations of S, and the squares of their eigenvectors, which are columns."""

    diagonal: Float[Tensor, " n"]
    values: Float[Tensor, " k"]
    squares: Float[Tensor, "n k"]


def correlations(S: Moment) -> Correlations:
    """Of a positive definite S. One that is diagonal has a single eigenvalue, 1."""
    S = S.double()
    if S.ndim == 1:
        return Correlations(S, torch.ones_like(S[:1]), torch.ones_like(S)[:, None])
    scale = S.diagonal().rsqrt()
    values, vectors = eigh(S * scale[:, None] * scale)
    return Correlations(S.diagonal(), values.clamp(min=RELATIVE_FLOOR * values[0].item()), vectors.square())


def unexplained(F: Correlations, H: Correlations, missing: float) -> Float[Tensor, "out in"]:
    """v for s = `missing` in [0, 1)."""
    gamma = missing / (1 - missing)
    inverse = F.squares @ (1 / (F.values[:, None] * H.values + gamma)) @ H.squares.T
    # The difference of two large numbers where almost all are missing.
    left = (1 / inverse - gamma).clamp(min=RELATIVE_FLOOR)
    return left * F.diagonal[:, None] * H.diagonal
