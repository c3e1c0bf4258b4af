"""How element-wise weights are made harmless: topped up, fitted by rank one, and divided by a rank-one bound.

Notation: Φ (m, n) non-negative weights, W (m, n) the matrix. With row and column scales p and q, the error
Σ_ij Φ_ij (W − Ŵ)_ij² is Σ_ij w_ij (A − X)_ij² for A = p W q, X = p Ŵ q and w_ij = Φ_ij / (p_i q_j)². The iterative
solvers move an entry by the fraction w_ij ≤ 1, so the nearer w is to 1 the fewer iterations they take.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.lowrank import Components
from laconic.numerics.psd import eigh

# A row or column that the loss never depended on counts this fraction of the mean, so that it is fitted at all.
LEAST_WEIGHT = 1e-6


class Scales(NamedTuple):
    """p and q, both positive."""

    p: Float[Tensor, " out"]
    q: Float[Tensor, " in"]


class Problem(NamedTuple):
    """min Σ_ij w_ij (A − X)_ij² over X of one rank, with 0 ≤ w ≤ 1."""

    A: Float[Tensor, "out in"]
    w: Float[Tensor, "out in"]

    def at(self, X: Float[Tensor, "out in"]) -> "State":
        """What X leaves."""
        E = self.A - X
        weighted = self.w * E
        return State(torch.dot(weighted.flatten(), E.flatten()).item(), X + weighted)


class State(NamedTuple):
    """error: Σ_ij w_ij (A − X)_ij². completed: w∘A + (1 − w)∘X, what is not weighted being filled in from X."""

    error: float
    completed: Float[Tensor, "out in"]


def topped_up(Phi: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Φ whose rows and columns all weigh something; unchanged where they did, all ones when nothing was measured."""
    Phi = Phi.double()
    if not Phi.any():
        return torch.ones_like(Phi)
    a, b = Phi.sum(1), Phi.sum(0)
    raised_a, raised_b = (sums.clamp(min=LEAST_WEIGHT * sums.mean()) for sums in (a, b))
    return Phi + (torch.outer(raised_a, raised_b) - torch.outer(a, b)) / Phi.sum()


def rank_one_fit(Phi: Float[Tensor, "out in"]) -> Scales:
    """Φ_ij ≈ (p_i q_j)² by the sums of rows and columns; exact when Φ has rank one."""
    return Scales(Phi.sum(1).sqrt(), (Phi.sum(0) / Phi.sum()).sqrt())


def rank_one_bound(Phi: Float[Tensor, "out in"]) -> Scales:
    """Φ_ij ≤ (p_i q_j)², with equality in every row and every column; near the rank-one fit."""
    fit = rank_one_fit(Phi)
    ratio = Phi / torch.outer(fit.p, fit.q).square()
    rows = ratio.amax(1)
    columns = (ratio / rows[:, None]).amax(0)
    return Scales(fit.p * rows.sqrt(), fit.q * columns.sqrt())


def uniform_bound(Phi: Float[Tensor, "out in"]) -> Scales:
    """Φ_ij ≤ (p_i q_j)² by the one largest weight."""
    return Scales(Phi.max().sqrt().expand(Phi.shape[0]), Phi.new_ones(Phi.shape[1]))


def scaled(W: Float[Tensor, "out in"], Phi: Float[Tensor, "out in"], bound: Scales) -> Problem:
    """The problem whose weights are divided by `bound`."""
    scale = torch.outer(bound.p, bound.q)
    # Rounding may leave the largest weight a hair above 1, where the iterations no longer must descend.
    return Problem(W.double() * scale, (Phi / scale.square()).clamp(max=1))


def rank_one_weighted(W: Float[Tensor, "out in"], scales: Scales, rank: int) -> Components:
    """The best `rank` under Σ_ij (p_i q_j)² (W − Ŵ)_ij², in closed form: p^{-1} SVD_r(p W q) q^{-1}; needs m ≤ n."""
    A, B = truncated(W.double() * torch.outer(scales.p, scales.q), rank)
    return Components(A / scales.p[:, None], B / scales.q)


def truncated(Y: Float[Tensor, "out in"], rank: int) -> Components:
    """SVD_r(Y) = U_r (U_r^T Y) for m ≤ n, by the eigenvectors of the m × m matrix Y Y^T.

    Squaring costs half the digits of the small singular values, but only the subspace of the large ones is used.
    """
    _, U = eigh(Y @ Y.T)
    U = U[:, :rank]
    return Components(U, U.T @ Y)
