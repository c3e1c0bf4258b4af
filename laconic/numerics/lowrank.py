"""Expansions W = Σ_i a_i b_i^T whose first r terms are the best rank r under some loss.

Also low-rank projections of the vectors inside a head, which make attention heads narrower (P. Chen et al.,
"DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, the section on attention). A head of size
d uses its queries and keys only in q^T k, and its values only in W_O v. With C_q = E[q q^T] and C_k = E[k k^T], over
queries and keys that are paired at random,

    E (q^T k − q^T M k)² = ‖C_q^{1/2} (I − M) C_k^{1/2}‖_F²,

and M = A B of rank r splits into q' = A^T q and k' = B k of size r. In the same way, over contexts z,

    E ‖W_O z − W_O M z‖² = ‖(W_O^T W_O)^{1/2} (I − M) E[z z^T]^{1/2}‖_F²,

W_O' = W_O A and v' = B v. Both are low-rank approximations of the identity between two moments.

Notation: W (m, n) with m = out, n = in; C (n, n) moment of the inputs, F (m, m) of the output gradients; A (m, k) and
B (k, n) the factors, k = min(m, n) or the numerical rank.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.moments import (
    RELATIVE_FLOOR,
    InputMoment,
    Moment,
    OutputMoment,
    eigh,
    multiply,
    root_factor,
    shrink,
    square_root,
)
from laconic.numerics.products import product

SINGLE_FROM = 1024
"""The least number of features whose moment is multiplied in fp32."""


class Components(NamedTuple):
    """The factors of W ≈ A B, most important terms first.

    Args:
        A: columns a_i.
        B: rows b_i.
    """

    A: Float[Tensor, "out k"]
    B: Float[Tensor, "k in"]


def svd_components(W: Float[Tensor, "out in"]) -> Components:
    """The singular value decomposition: the best rank r in the Frobenius norm (Eckart & Young, 1936). In fp64.

    Example:
        >>> A, B = svd_components(torch.diag(torch.tensor([1.0, 4.0])))
        >>> (A[:, :1] @ B[:1]).round(decimals=4)
        tensor([[0., 0.],
                [0., 4.]], dtype=torch.float64)
    """
    U, s, Vt = torch.linalg.svd(W.double(), full_matrices=False)
    return balance(Components(U * s, Vt))


def column_weighted_components(W: Float[Tensor, "out in"], d: Float[Tensor, " in"]) -> Components:
    """The best rank r under Σ_ij d_j² (W − Ŵ)_ij²: SVD(W D) D^{-1} with D = diag(d). In fp64.

    Args:
        W: the matrix.
        d: positive weights of the columns.

    Example:
        >>> A, B = column_weighted_components(torch.eye(2), torch.tensor([1.0, 3.0]))
        >>> (A[:, :1] @ B[:1]).diagonal().round(decimals=4)
        tensor([0., 1.], dtype=torch.float64)
    """
    U, s, Vt = torch.linalg.svd(W.double() * d, full_matrices=False)
    return balance(Components(U * s, Vt / d))


class TwoSidedTerms(NamedTuple):
    """The terms of W = Σ_i a_i b_i^T that do not overlap under F and C, so that losses of several terms add up.

    Args:
        A: columns with A^T F A = I.
        B: rows with B C B^T = diag σ².
        values: σ_i², twice the loss of leaving out term i.
    """

    A: Float[Tensor, "out k"]
    B: Float[Tensor, "k in"]
    values: Float[Tensor, " k"]


def two_sided_components(W: Float[Tensor, "out in"], F: OutputMoment, C: InputMoment) -> Components:
    """The best rank r under ½ tr(F E C E^T), with one root only, on the smaller side of W. In fp64.

    Args:
        W: the matrix.
        F: moment of the output gradients; positive definite if m ≤ n (`moments.shrink`).
        C: moment of the inputs.

    Example:
        >>> A, B = two_sided_components(torch.eye(2), torch.ones(2), torch.tensor([1.0, 9.0]))
        >>> (A[:, :1] @ B[:1]).diagonal().round(decimals=4)
        tensor([0., 1.], dtype=torch.float64)
    """
    A, B, _ = two_sided_terms(W, F, C)
    return balance(Components(A, B))


def two_sided_terms(W: Float[Tensor, "out in"], F: OutputMoment, C: InputMoment) -> TwoSidedTerms:
    """The terms of `two_sided_components`, with their losses.

    Let P = F^{1/2}, R = C^{1/2} and P W R = Σ σ_i u_i v_i^T. The optimum is Ŵ = P^{-1} U_r U_r^T P W.

    - m ≤ n: U are the eigenvectors of P (W C W^T) P. C is neither rooted nor inverted, and may be singular.
    - m > n: V are the eigenvectors of R (W^T F W) R, and U = P W R V Λ^{-1/2} gives A = W R V Λ^{-1/2} and
      B = Λ^{-1/2} V^T R (W^T F W). F is not rooted, only Λ is inverted, and both moments may be singular.

    Args:
        W: the matrix.
        F: moment of the output gradients; positive definite if m ≤ n.
        C: moment of the inputs.

    Example:
        >>> two_sided_terms(torch.eye(2), torch.ones(2), torch.tensor([1.0, 9.0])).values
        tensor([9., 1.], dtype=torch.float64)
    """
    W, F, C = W.double(), F.double(), C.double()
    m, n = W.shape
    if m <= n:
        L = root_factor(F)
        PW = multiply(L.mT, W) if L.ndim == 2 else multiply(L, W)
        values, U = eigh(PW @ _large_product(C, PW.T))
        A = torch.linalg.solve_triangular(L.mT, U, upper=True) if L.ndim == 2 else U / L[:, None]
        return TwoSidedTerms(A, U.T @ PW, values.clamp(min=0))
    R = square_root(C)
    WFW = W.T @ _large_product(F, W)
    values, V = eigh(multiply(R, multiply(R, WFW).T))
    return _from_input_side(W, R, WFW, values, V)


def _large_product(S: Moment, X: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """S X; a large S is a sum of products in fp32, so that a product in fp64 has no more correct digits."""
    if S.ndim == 1 or len(S) < SINGLE_FROM:
        return multiply(S, X)
    return product(S.float(), X.float()).double()


def _from_input_side(
    W: Float[Tensor, "out in"], R: InputMoment, WFW: Float[Tensor, "in in"], values: Tensor, V: Tensor
) -> TwoSidedTerms:
    # Beyond the numerical rank, Λ and its inverse root are noise.
    k = max(1, int((values > RELATIVE_FLOOR * values[0].clamp(min=0)).sum()))
    if values[0] <= 0:
        A, B = svd_components(W)
        return TwoSidedTerms(A, B, torch.zeros_like(A[0]))
    inverse_root = values[:k].rsqrt()
    RV = multiply(R, V[:, :k]) * inverse_root
    return TwoSidedTerms(W @ RV, RV.T @ WFW, values[:k])


def separate_losses(losses: Float[Tensor, " k"]) -> Float[Tensor, " k+1"]:
    """The losses of keeping the first r terms, for r = 0, …, k, if those of leaving out single terms add up.

    Args:
        losses: the loss of leaving out each term.

    Example:
        >>> separate_losses(torch.tensor([2.0, 1.0]))
        tensor([3., 1., 0.])
    """
    return torch.cat([losses.flip(0).cumsum(0).flip(0), losses.new_zeros(1)])


def solve_output_factor(
    W: Float[Tensor, "out in"], B: Float[Tensor, "r in"], H: Float[Tensor, "in in"]
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r r"]]:
    """The left factor A of least tr((W − A B) H (W − A B)^T) for a given right factor B.

    Args:
        W: the matrix.
        B: the right factor.
        H: moment of the inputs.

    Returns:
        A, and M = B H B^T. The loss of another A' is that of A plus tr((A' − A) M (A' − A)^T).

    Example:
        >>> A, M = solve_output_factor(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 2.0]]), torch.eye(2))
        >>> A.tolist(), M.tolist()
        ([[2.0]], [[5.0]])
    """
    B, H = B.double(), H.double()
    HB = H @ B.T
    moment = B @ HB
    return torch.cholesky_solve((W.double() @ HB).T, root_factor(moment)).T, moment


def balance(components: Components) -> Components:
    """Scale each pair so that ‖a_i‖ = ‖b_i‖, which keeps factors in half precision away from overflow and underflow.

    Example:
        >>> balance(Components(torch.tensor([[8.0]]), torch.tensor([[2.0]])))
        Components(A=tensor([[4.]]), B=tensor([[4.]]))
    """
    A, B = components
    tiny = torch.finfo(A.dtype).tiny
    ratio = (B.norm(dim=1).clamp(min=tiny) / A.norm(dim=0).clamp(min=tiny)).sqrt()
    return Components(A * ratio, B / ratio[:, None])


def break_even_rank(out_features: int, in_features: int) -> int:
    """The largest rank whose factors hold fewer numbers than the matrix: r (m + n) < m n.

    Example:
        >>> break_even_rank(8, 8)
        3
    """
    return (out_features * in_features - 1) // (out_features + in_features)


def rank_for(keep: float, out_features: int, in_features: int, multiple: int) -> int:
    """The largest rank whose factors hold at most a fraction of the matrix's numbers.

    Args:
        keep: the fraction.
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        multiple: the rank is rounded down to a multiple of it, unless it is smaller.

    Returns:
        The rank, at least 1, though rank 1 of a very thin matrix may take more than `keep`.

    Example:
        >>> rank_for(0.5, 384, 384, multiple=8)
        96
    """
    # 0.29 · 800 is 231.99… in floating point, which must not lose a rank.
    rank = int(keep * out_features * in_features / (out_features + in_features) + 1e-9)
    return max(1, rank - rank % multiple if rank >= multiple else rank)


def identity_components(F: Float[Tensor, "d d"], C: Float[Tensor, "d d"]) -> Components:
    """I ≈ A B, whose first r terms are the best rank r in ‖F^{1/2} (I − A B) C^{1/2}‖_F, for every r at once.

    With P = F^{1/2}, R = C^{1/2} and P R = Σ σ_i u_i v_i^T the optimum is P^{-1} (Σ_{i≤r} σ_i u_i v_i^T) R^{-1}. As
    P^{-1} U = R V Σ^{-1} and R^{-1} V = P U Σ^{-1}, it is A = R V Σ^{-1/2}, B = Σ^{-1/2} U^T P. No moment is inverted,
    and both may be singular. Terms beyond the numerical rank of P R are zero.

    Args:
        F: one moment; all zero counts as the identity.
        C: the other moment; all zero counts as the identity.

    Example:
        >>> A, B = identity_components(torch.eye(2), torch.diag(torch.tensor([1.0, 9.0])))
        >>> (A[:, :1] @ B[:1]).diagonal().round(decimals=4)
        tensor([0., 1.], dtype=torch.float64)
    """
    P, R = square_root(shrink(F, 0.0)), square_root(shrink(C, 0.0))
    U, s, Vt = torch.linalg.svd(P @ R)
    # σ is a square root of eigenvalues, so their floor is rooted too.
    floor = RELATIVE_FLOOR**0.5 * s[0]
    inverse_root = torch.where(s > floor, s.clamp(min=torch.finfo(s.dtype).tiny).rsqrt(), 0.0)
    return balance(Components(R @ Vt.T * inverse_root, inverse_root[:, None] * (U.T @ P)))


def affine_moment(
    W: Float[Tensor, "out in"], b: Float[Tensor, " out"] | None, C: Float[Tensor, "in in"], mean: Float[Tensor, " in"]
) -> Float[Tensor, "out out"]:
    """E[y y^T] of y = W x + b. In fp64.

    Args:
        W: the matrix.
        b: the bias; None without one.
        C: E[x x^T].
        mean: E[x].

    Example:
        >>> affine_moment(torch.eye(1), torch.ones(1), torch.ones(1, 1), mean=torch.zeros(1))
        tensor([[2.]], dtype=torch.float64)
    """
    W, C = W.double(), C.double()
    moment = W @ C @ W.T
    if b is None:
        return moment
    b, Wm = b.double(), W @ mean.double()
    return moment + torch.outer(Wm, b) + torch.outer(b, Wm) + torch.outer(b, b)
