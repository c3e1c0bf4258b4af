"""Weighted low rank by alternating least squares: X = U V^T, the rows of U and of V solved for in turn.

Paper: N. Srebro, T. Jaakkola, "Weighted Low-Rank Approximations", ICML 2003, section 3:
u_i = (V^T diag(w_i) V)^{-1} V^T diag(w_i) a_i. Here with a ridge on the *change* of u_i, which keeps every system
regular and, since no change is always allowed, never raises the error. One sweep costs m n r².
"""

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.acceleration import Descent, has_converged
from laconic.numerics.lowrank import Components
from laconic.numerics.weights import Problem

# The ridge, relative to the mean diagonal of each row's normal matrix, and the least diagonal that counts.
RIDGE = 1e-6
LEAST_DIAGONAL = 1e-9

# Numbers held at once for the normal matrices of several rows: 64 MiB.
AT_ONCE = 2**23


def alternate(problem: Problem, start: Components, sweeps: int) -> Descent:
    """At most `sweeps` updates of both factors from `start`; fewer when they no longer change anything."""
    A, w = problem
    factors = start
    U, Vt = factors
    errors = [problem.at(U @ Vt).error]
    for _ in range(sweeps):
        # An orthonormal basis on the fixed side makes the ridge mean the same in every sweep.
        V, U = _orthonormal(Vt.T, U)
        U, V = _orthonormal(_solved(A, w, U, V), V)
        Vt = _solved(A.T, w.T, V, U).T
        error = problem.at(U @ Vt).error
        if error >= errors[-1]:
            # No smaller error is left but rounding.
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


def _solved(
    A: Float[Tensor, "m n"], w: Float[Tensor, "m n"], U: Float[Tensor, "m r"], V: Float[Tensor, "n r"]
) -> Float[Tensor, "m r"]:
    """Every row u_i moved to the minimum of Σ_j w_ij (A_ij − u_i·v_j)² plus the ridge on its change."""
    r = V.shape[1]
    gradient = (w * (A - U @ V.T)) @ V
    moved = torch.empty_like(U)
    for rows in torch.arange(len(U)).split(max(1, AT_ONCE // r**2)):
        normal = _normal_matrices(w[rows], V)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal += RIDGE * diagonal.mean(1, keepdim=True).clamp(min=LEAST_DIAGONAL)
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
