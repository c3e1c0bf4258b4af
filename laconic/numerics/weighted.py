"""The best rank r under element-wise weights: min Σ_ij Φ_ij (W − Ŵ)_ij², which has no closed form.

The problem is scaled by a rank-one bound of the weights, started at the closed form of the rank-one fit of the weights,
and solved by one of four iterations, none of which ever raises the error. Without `precondition` it is scaled only
by the largest weight and started at the truncated SVD, as in N. Srebro, T. Jaakkola, "Weighted Low-Rank
Approximations", ICML 2003; if the weights differ by orders of magnitude, most entries then hardly change.

Alternating least squares (section 3 there) has X = U V^T and solves for the rows of U and of V in turn, u_i = (V^T
diag(w_i) V)^{-1} V^T diag(w_i) a_i. Here a ridge on the *change* of u_i keeps every system regular. It never raises the
error, because a change of zero is possible. One sweep takes m n r² operations.

Notation: W (m, n) the matrix, Φ (m, n) its non-negative weights; A and w (m, n) the scaled matrix and weights, U (m, r)
and V (n, r) the factors; p and q the scales of rows and columns.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.lowrank import Components, balance
from laconic.numerics.weighted_em import (
    Anderson,
    Descent,
    ExpectationMaximization,
    Nesterov,
    Scales,
    WeightedProblem,
    descend,
    has_converged,
    raise_floor,
    rank_one_bound,
    rank_one_fit,
    rank_one_weighted,
    scale_problem,
    uniform_bound,
)

# The ridge, relative to the mean diagonal of each row's normal matrix, and a lower bound of that mean.
ALS_RIDGE = 1e-6
LEAST_DIAGONAL = 1e-9

# Numbers held at once for the normal matrices of several rows: 64 MiB.
AT_ONCE = 2**23


def alternating_least_squares(problem: WeightedProblem, start: Components, sweeps: int) -> Descent:
    """Update both factors in turn.

    Args:
        problem: the matrix and its weights.
        start: the first factors.
        sweeps: at most this many updates of both factors; fewer at convergence.

    Example:
        >>> problem = WeightedProblem(torch.diag(torch.tensor([3.0, 1.0])), torch.ones(2, 2))
        >>> start = Components(torch.ones(2, 1), torch.ones(1, 2))
        >>> alternating_least_squares(problem, start, sweeps=20).errors[-1] < 1.1
        True
    """
    A, w = problem
    factors = start
    U, Vt = factors
    errors = [problem.evaluate(U @ Vt).error]
    for _ in range(sweeps):
        # An orthonormal basis on the fixed side gives the ridge the same effect in every sweep.
        V, U = _orthonormal(Vt.T, U)
        U, V = _orthonormal(_solve_rows(A, w, U, V), V)
        Vt = _solve_rows(A.T, w.T, V, U).T
        error = problem.evaluate(U @ Vt).error
        if error >= errors[-1]:
            # What remains is rounding error.
            break
        factors = Components(U, Vt)
        errors.append(error)
        if has_converged(errors):
            break
    return Descent(factors, errors)


def _orthonormal(V: Float[Tensor, "n r"], U: Float[Tensor, "m r"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, "m r"]]:
    """Q and U R^T with V = Q R, so that the product U V^T is the same."""
    Q, R = torch.linalg.qr(V)
    return Q, U @ R.T


def _solve_rows(
    A: Float[Tensor, "m n"], w: Float[Tensor, "m n"], U: Float[Tensor, "m r"], V: Float[Tensor, "n r"]
) -> Float[Tensor, "m r"]:
    """Every row u_i at the minimum of Σ_j w_ij (A_ij − u_i·v_j)² plus the ridge on its change."""
    r = V.shape[1]
    gradient = (w * (A - U @ V.T)) @ V
    moved = torch.empty_like(U)
    for rows in torch.arange(len(U)).split(max(1, AT_ONCE // r**2)):
        normal = _normal_matrices(w[rows], V)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal += ALS_RIDGE * diagonal.mean(1, keepdim=True).clamp(min=LEAST_DIAGONAL)
        change = torch.cholesky_solve(gradient[rows, :, None], torch.linalg.cholesky(normal))
        moved[rows] = U[rows] + change[:, :, 0]
    return moved


def _normal_matrices(w: Float[Tensor, "rows n"], V: Float[Tensor, "n r"]) -> Float[Tensor, "rows r r"]:
    """V^T diag(w_i) V of every row, one column of all of them at a time: large products and little memory."""
    r = V.shape[1]
    normal = w.new_empty(len(w), r, r)
    for k in range(r):
        below = w @ (V[:, k:] * V[:, k, None])
        normal[:, k:, k] = below
        normal[:, k, k:] = below
    return normal


SolverName = Literal["em", "nesterov", "anderson", "als"]


class Solution(NamedTuple):
    """Ŵ = A B.

    Args:
        A: the left factor.
        B: the right factor.
        losses: Σ Φ (W − Ŵ)² at the start and after every iteration, never rising.
    """

    A: Float[Tensor, "out r"]
    B: Float[Tensor, "r in"]
    losses: Float[Tensor, " steps"]


def weighted_low_rank(
    W: Float[Tensor, "out in"],
    Phi: Float[Tensor, "out in"],
    rank: int,
    solver: SolverName = "nesterov",
    iterations: int = 30,
    precondition: bool = True,
) -> Solution:
    """A local minimum of Σ_ij Φ_ij (W − Ŵ)_ij² over rank r. In fp64.

    Args:
        W: the matrix.
        Phi: weights ≥ 0. Rows and columns are raised to a millionth of the mean, in the losses too; all zero means
            uniform weights.
        rank: r.
        solver: `em`, EM with `nesterov` or `anderson` acceleration, or `als`.
        iterations: at most this many; fewer at convergence.
        precondition: scale the weights by a rank-one bound.

    Example:
        >>> W, Phi = torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([[0.01, 1.0], [1.0, 100.0]])
        >>> A, B, losses = weighted_low_rank(W, Phi, rank=1)
        >>> (A @ B).round(decimals=1)
        tensor([[0., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    if len(W) > W.shape[1]:
        A, B, losses = weighted_low_rank(W.T, Phi.T, rank, solver, iterations, precondition)
        return Solution(B.T, A.T, losses)
    Phi = raise_floor(Phi)
    # The scale of Φ is free; at a mean of 1 no square of it can underflow.
    unit = Phi.mean()
    Phi = Phi / unit
    bound = rank_one_bound(Phi) if precondition else uniform_bound(Phi)
    fit = rank_one_fit(Phi) if precondition else bound
    p, q = bound
    A, B = rank_one_weighted(W, fit, rank)
    descent = _solve(scale_problem(W, Phi, bound), Components(p[:, None] * A, B * q), solver, iterations)
    return _solution(descent, bound, unit)


def _solve(problem: WeightedProblem, start: Components, solver: SolverName, iterations: int) -> Descent:
    match solver:
        case "als":
            return alternating_least_squares(problem, start, iterations)
        case "em":
            return descend(problem, start, ExpectationMaximization(), iterations)
        case "nesterov":
            return descend(problem, start, Nesterov(), iterations)
        case "anderson":
            return descend(problem, start, Anderson(start.A @ start.B), iterations)


def _solution(descent: Descent, bound: Scales, unit: Tensor) -> Solution:
    A, B = descent.factors
    factors = balance(Components(A / bound.p[:, None], B / bound.q))
    return Solution(*factors, torch.tensor(descent.errors, dtype=unit.dtype, device=unit.device) * unit)
