"""Ordered rank-one expansions W = Σ_i a_i b_i^T whose first r terms are the best rank r under some loss.

Notation: W (m, n) with m = out, n = in; C (n, n) the moment of the inputs, F (m, m) that of the output gradients;
A (m, k) and B (k, n) the factors, k = min(m, n) or the numerical rank.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.psd import RELATIVE_FLOOR, InputMoment, OutputMoment, eigh, root_factor, square_root, times


class Components(NamedTuple):
    """W ≈ A B, the columns of A and the rows of B in order of importance."""

    A: Float[Tensor, "out k"]
    B: Float[Tensor, "k in"]


def svd_components(W: Float[Tensor, "out in"]) -> Components:
    """Eckart & Young (1936): the best rank r in the Frobenius norm."""
    U, s, Vt = torch.linalg.svd(W.double(), full_matrices=False)
    return balanced(Components(U * s, Vt))


def column_weighted_components(W: Float[Tensor, "out in"], d: Float[Tensor, " in"]) -> Components:
    """The best rank r under Σ_ij d_j² (W − Ŵ)_ij²: SVD(W D) D^{-1}, D = diag(d), d > 0."""
    U, s, Vt = torch.linalg.svd(W.double() * d, full_matrices=False)
    return balanced(Components(U * s, Vt / d))


def two_sided_components(W: Float[Tensor, "out in"], F: OutputMoment, C: InputMoment) -> Components:
    """The best rank r under ½ tr(F E C E^T), with one root only, on the smaller side of W.

    Let P = F^{1/2}, R = C^{1/2} and P W R = Σ σ_i u_i v_i^T. The optimum is Ŵ = P^{-1} U_r U_r^T P W.
      m ≤ n: U are the eigenvectors of P (W C W^T) P; C is never rooted nor inverted and may be singular. F must be
             positive definite (shrink it).
      m > n: V are the eigenvectors of R (W^T F W) R, and U = P W R V Λ^{-1/2} gives
             A = W R V Λ^{-1/2}, B = Λ^{-1/2} V^T R (W^T F W): F is never rooted, nothing but Λ is inverted, and
             both moments may be singular.
    """
    W, F, C = W.double(), F.double(), C.double()
    m, n = W.shape
    if m <= n:
        L = root_factor(F)
        PW = times(L.mT, W) if L.ndim == 2 else times(L, W)
        _, U = eigh(PW @ times(C, PW.T))
        A = torch.linalg.solve_triangular(L.mT, U, upper=True) if L.ndim == 2 else U / L[:, None]
        return balanced(Components(A, U.T @ PW))
    R = square_root(C)
    WFW = W.T @ times(F, W)
    values, V = eigh(times(R, times(R, WFW).T))
    return _from_input_side(W, R, WFW, values, V)


def _from_input_side(
    W: Float[Tensor, "out in"], R: InputMoment, WFW: Float[Tensor, "in in"], values: Tensor, V: Tensor
) -> Components:
    # Beyond the numerical rank Λ is noise, and so would be its inverse root.
    k = max(1, int((values > RELATIVE_FLOOR * values[0].clamp(min=0)).sum()))
    if values[0] <= 0:
        return svd_components(W)
    inverse_root = values[:k].rsqrt()
    RV = times(R, V[:, :k]) * inverse_root
    return balanced(Components(W @ RV, RV.T @ WFW))


def output_factor(
    W: Float[Tensor, "out in"], B: Float[Tensor, "r in"], H: Float[Tensor, "in in"]
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r r"]]:
    """The A of least tr((W − A B) H (W − A B)^T) = const + tr((A' − A) B H B^T (A' − A)^T), and B H B^T."""
    B, H = B.double(), H.double()
    HB = H @ B.T
    moment = B @ HB
    return torch.cholesky_solve((W.double() @ HB).T, root_factor(moment)).T, moment


def balanced(components: Components) -> Components:
    """Scale each pair so that ‖a_i‖ = ‖b_i‖, which keeps half-precision factors away from their extremes."""
    A, B = components
    tiny = torch.finfo(A.dtype).tiny
    ratio = (B.norm(dim=1).clamp(min=tiny) / A.norm(dim=0).clamp(min=tiny)).sqrt()
    return Components(A * ratio, B / ratio[:, None])


def break_even_rank(out_features: int, in_features: int) -> int:
    """The largest rank whose two factors hold fewer numbers than the matrix: r (m + n) < m n."""
    return (out_features * in_features - 1) // (out_features + in_features)


def rank_for(keep: float, out_features: int, in_features: int, multiple: int) -> int:
    """The largest rank whose factors hold at most `keep` of the matrix's numbers, rounded down to `multiple`.

    Never below 1, though rank 1 of a very thin matrix may be more than `keep`; a rank smaller than `multiple` is not
    rounded, because rounding would lose the matrix.
    """
    # 0.29 · 800 is 231.99… in floating point; no rank is to be lost to that.
    rank = int(keep * out_features * in_features / (out_features + in_features) + 1e-9)
    return max(1, rank - rank % multiple if rank >= multiple else rank)
