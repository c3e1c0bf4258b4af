"""The best values of the weights that a mask keeps: least squares for each row.

For a row w and the set K of its kept columns, z = argmin (w − z)^T H (w − z) with z zero outside K solves
H_KK z_K = H_K: w. Every row has another K, and so another matrix. Where K is at most a quarter of the row, each H_KK is
factored (Cholesky), many rows at once. Where it is more, that takes up to ten times as long as conjugate gradients on
all rows together, which need only products with H. The preconditioner is H^{-1} restricted to the support: exact where
nothing or all of a row is kept. In between ten to twenty steps suffice; with the diagonal of H as preconditioner it
takes several times as many. (V. Boža, "Fast and Effective Weight Update for Pruned Large Language Models", TMLR 2024,
arXiv 2401.02938, solves the same system by ADMM.)

Notation: W (m, n) with m = out, n = in; H (n, n) positive definite; M (m, n) the mask; R residual, D direction.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.numerics.moments import root_factor

TOLERANCE = 1e-5
"""A row is done once its residual, in the norm of the preconditioner, is below this fraction of the first residual. The
loss is quadratic around its minimum, so its error is much smaller still."""

NEAR, STEPS = 0.03, 12
"""Tolerance and largest number of steps of `refine`. On mico-tinyllama-1m, further steps
lower the loss on the calibration rows, but not the KL on held-out rows."""

DIRECT = 0.25
"""Rows that keep at most this fraction of their columns are solved by factoring."""

NUMBERS = 2**23
"""Numbers in each intermediate result: 64 MB."""


def inverse(H: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """H^{-1} of a positive definite H, in fp64; a singular one is raised as in `root_factor`.

    Example:
        >>> inverse(torch.tensor([[4.0]])).tolist()
        [[0.25]]
    """
    return torch.cholesky_inverse(root_factor(H))


def refit(
    W: Float[Tensor, "out in"], M: Bool[Tensor, "out in"], H: Float[Tensor, "in in"], H_inverse: Float[Tensor, "in in"]
) -> Float[Tensor, "out in"]:
    """The least squares solution of every row on its support. In fp64.

    Args:
        W: the matrix.
        M: True at kept weights.
        H: moment of the inputs, positive definite.
        H_inverse: its inverse.

    Returns:
        Z, zero outside the mask, minimising tr((W − Z) H (W − Z)^T).

    Example:
        >>> H = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> refit(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]), H, inverse(H)).round(decimals=4)
        tensor([[0.0000, 2.5000]], dtype=torch.float64)
    """
    W = W.double()
    n = W.shape[1]
    Z = torch.zeros_like(W)
    kept = M.sum(1)
    for rows in (kept > DIRECT * n).nonzero().squeeze(1).split(max(1, NUMBERS // n)):
        first = W[rows] * M[rows]
        residual = ((W[rows] - first) @ H) * M[rows]
        Z[rows] = conjugate_gradients(
            lambda D: D @ H, lambda R: R @ H_inverse, (first, residual), M[rows], (TOLERANCE, n)
        )
    few = (kept <= DIRECT * n).nonzero().squeeze(1)
    # Rows with similar counts are factored together, so that there is little padding.
    few = few[kept[few].argsort(descending=True)]
    while len(few) and (k := int(kept[few[0]])):
        rows, few = few.tensor_split([max(1, NUMBERS // (k * k))])
        Z[rows] = _by_factoring(W[rows] @ H, M[rows], H, k)
    return Z


def refine(
    W: Float[Tensor, "out in"], M: Bool[Tensor, "out in"], H: Float[Tensor, "in in"], Z: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """Improve a Z that is near the least squares solution on the support, by a few steps.

    Conjugate gradients run in fp32; the losses are compared in fp64, and a row whose loss would rise keeps its Z. Near
    the solution, the diagonal of H is as good a preconditioner as H^{-1}, at half the cost.

    Args:
        W: the matrix.
        M: True at kept weights.
        H: moment of the inputs, positive definite, in fp64.
        Z: the solution so far.

    Returns:
        The improved Z, in fp64.

    Example:
        >>> W, M, H = torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> refine(W, M, H.double(), Z=W * M).round(decimals=3)
        tensor([[0.0000, 2.5000]], dtype=torch.float64)
    """
    W, Z = W.double(), Z.double()
    H_single, inverse_diagonal = H.float(), H.diagonal().reciprocal().float()
    better = torch.empty_like(Z)
    for rows in torch.arange(len(W), device=W.device).split(max(1, NUMBERS // W.shape[1])):
        first = Z[rows].float()
        residual = ((W[rows].float() - first) @ H_single) * M[rows]
        found = conjugate_gradients(
            lambda D: D @ H_single, lambda R: R * inverse_diagonal, (first, residual), M[rows], (NEAR, STEPS)
        ).double()
        lower = _losses(W[rows] - found, H) < _losses(W[rows] - Z[rows], H)
        better[rows] = torch.where(lower[:, None], found, Z[rows])
    return better


def _losses(E: Float[Tensor, "rows in"], H: Float[Tensor, "in in"]) -> Float[Tensor, " rows"]:
    """e^T H e of every row."""
    return ((E @ H) * E).sum(1)


def _by_factoring(
    B: Float[Tensor, "rows in"], M: Bool[Tensor, "rows in"], H: Float[Tensor, "in in"], k: int
) -> Float[Tensor, "rows in"]:
    """Solve H_KK z_K = b_K row by row, for supports of at most k columns."""
    inside, columns = M.sort(dim=1, descending=True, stable=True)
    inside, columns = inside[:, :k], columns[:, :k]
    systems = H[columns[:, :, None], columns[:, None, :]]
    # A row with fewer columns is padded with those of the identity.
    systems.masked_fill_(~(inside[:, :, None] & inside[:, None, :]), 0.0)
    systems.diagonal(dim1=1, dim2=2).masked_fill_(~inside, 1.0)
    L = torch.linalg.cholesky(systems)
    b = (B.gather(1, columns) * inside)[:, :, None]
    z = torch.linalg.solve_triangular(L.mT, torch.linalg.solve_triangular(L, b, upper=False), upper=True)
    return torch.zeros_like(B).scatter_(1, columns, z.squeeze(2))


Operator = Callable[[Float[Tensor, "rows n"]], Float[Tensor, "rows n"]]


def conjugate_gradients(
    multiply: Operator,
    precondition: Operator,
    start: tuple[Float[Tensor, "rows n"], Float[Tensor, "rows n"]],
    mask: Bool[Tensor, "rows n"],
    until: tuple[float, int],
) -> Float[Tensor, "rows n"]:
    """Solve one symmetric positive definite system for each row, by preconditioned conjugate gradients.

    Every row has its own step lengths, and stops at its own convergence. All rows have the same matrix, restricted to
    the support of the row.

    Args:
        multiply: the matrix times some directions, one in each row.
        precondition: an approximate inverse of the matrix times some residuals.
        start: the first solution, and its residual, which is zero outside the mask.
        mask: True at the unknowns; the other numbers do not change.
        until: the fraction of the first residual, in the norm of the preconditioner, at which a row is done, and the
            largest number of steps.

    Example:
        >>> b, every = torch.tensor([[2.0, 8.0]]), torch.ones(1, 2, dtype=torch.bool)
        >>> conjugate_gradients(lambda D: D * torch.tensor([1.0, 2.0]), lambda R: R, (0 * b, b), every, (1e-6, 10))
        tensor([[2., 4.]])
    """
    (X, R), (tolerance, steps) = start, until
    X, allowed = X.clone(), mask.to(X.dtype)
    D = precondition(R) * allowed
    energy = (R * D).sum(1, keepdim=True)
    goal = tolerance**2 * energy
    rows = (energy > 0).squeeze(1).nonzero().squeeze(1)
    R, D, energy, goal, allowed = R[rows], D[rows], energy[rows], goal[rows], allowed[rows]
    for _ in range(steps):
        if not len(rows):
            break
        AD = multiply(D) * allowed
        step = energy / (D * AD).sum(1, keepdim=True)
        X[rows] += step * D
        R = R - step * AD
        Y = precondition(R) * allowed
        before, energy = energy, (R * Y).sum(1, keepdim=True)
        D = Y + energy / before * D
        if not (live := (energy > goal).squeeze(1)).all():
            rows, R, D, energy, goal, allowed = rows[live], R[live], D[live], energy[live], goal[live], allowed[live]
    return X
