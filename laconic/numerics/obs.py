"""Optimal brain surgeon: pruning column by column with compensation, and how far the remaining weights can compensate.

`prune_columns` is algorithm 1 of E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned
in One-Shot", ICML 2023, arXiv 2301.00774. With the Hessian H of a row, removing w_q costs ½ w_q² / [H^{-1}]_qq and
moves the others by −(w_q / [H^{-1}]_qq) H^{-1}_{:,q} (B. Hassibi, D. Stork, "Second order derivatives for network
pruning", NeurIPS 1992). U is upper triangular with H^{-1} = U^T U. Row q of U is the first row of the inverse Hessian
of columns q, q + 1, …, divided by the root of its first entry. This is all that the update of columns right of q needs.

`residual_curvature` is for scores of single weights. With the curvature A = F ⊗ H, removing the weight in row i and
column j costs ½ w² / [A^{-1}]_(ij)(ij) if all others compensate, and ½ w² F_ii H_jj if none does. In between, let each
of the others be missing with probability s, and be scaled by 1 / (1 − s) otherwise. The expectation of their second
moment is then A + γ diag A, γ = s / (1 − s), as in dropout (S. Wager, S. Wang, P. Liang, "Dropout Training as Adaptive
Regularization", NeurIPS 2013), and the least expected cost is ½ w² v_ij with the Schur complement

    v_ij = 1 / [(A + γ diag A)^{-1}]_(ij)(ij) − γ F_ii H_jj.

With the correlations U Λ U^T of F and V M V^T of H that is F_ii H_jj (1 / Σ_ab U_ia² V_jb² / (λ_a μ_b + γ) − γ), two
matrix products once the eigenvectors are known.

Notation: W (m, n) with m = out, n = in, and one weight w of it in row i and column j; H (n, n) damped moment of the
inputs, F (m, m) moment of the output gradients; A (mn, mn) their Kronecker product.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.numerics.moments import (
    RELATIVE_FLOOR,
    InputMoment,
    Moment,
    root_factor,
    shrink,
    unit_diagonal,
)

BLOCK = 128
"""Number of columns after which their errors are passed on to all columns to the right, in one matrix product."""

SINGLE_FROM = 1024
"""The least number of features whose correlations are decomposed in fp32."""

MaskRule = Callable[[Float[Tensor, "out columns"], int], Bool[Tensor, "out columns"]]
"""Returns a mask of kept weights, given the scores w² / [H^{-1}]_qq of some columns and the index of the first one."""


class PrunedWeight(NamedTuple):
    """A pruned matrix and its mask.

    Args:
        W: the matrix with its zeros.
        mask: True at kept weights.
    """

    W: Float[Tensor, "out in"]
    mask: Bool[Tensor, "out in"]


def damp(C: InputMoment, damping: float) -> InputMoment:
    """C + λ I with λ a fraction of the mean diagonal. In fp64.

    Args:
        C: a moment; if it is all zero, the result is the identity.
        damping: λ as a fraction of mean(diag C).

    Example:
        >>> damp(torch.tensor([1.0, 3.0]), 0.5)
        tensor([2., 4.], dtype=torch.float64)
    """
    C = C.double()
    diagonal = C if C.ndim == 1 else C.diagonal()
    level = damping * diagonal.mean()
    if diagonal.mean() <= 0:
        return shrink(C, 0.0)
    if C.ndim == 1:
        return C + level
    damped = C.clone()
    damped.diagonal().add_(level)
    return damped


def inverse_cholesky(H: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """U, upper triangular, with H^{-1} = U^T U. In fp64.

    Args:
        H: positive definite; a singular H is raised as in `root_factor`.

    Example:
        >>> inverse_cholesky(torch.diag(torch.tensor([4.0, 1.0])))
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    # H = R R^T with R upper triangular, so U = R^{-1}: no inverse is formed on the way.
    R = root_factor(H.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(R, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=True)


def prune_columns(
    W: Float[Tensor, "out in"], U: Float[Tensor, "in in"], keep: MaskRule, step: int = BLOCK
) -> PrunedWeight:
    """Prune from left to right; columns further right compensate for each removed weight.

    Args:
        W: the matrix.
        U: the factor of H^{-1}, as `inverse_cholesky` returns it.
        keep: decides which weights of the next columns are kept, from their scores w² / [H^{-1}]_qq.
        step: columns that are decided on at a time.

    Returns:
        The matrix in fp64, and its mask.

    Example:
        With equal inputs, the second weight takes over the first.

        >>> U = inverse_cholesky(damp(torch.ones(2, 2), 1e-6))
        >>> keep = lambda scores, start: torch.tensor([[False, True]])
        >>> prune_columns(torch.tensor([[1.0, 2.0]]), U, keep).W.round(decimals=4)
        tensor([[0., 3.]], dtype=torch.float64)
    """
    # Transposed, so that a column is contiguous.
    Wt = W.double().T.clone(memory_format=torch.contiguous_format)
    mask = torch.ones_like(Wt, dtype=torch.bool)
    n = len(Wt)
    block = max(step, BLOCK - BLOCK % step)
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = _prune_block(Wt[start:stop], U[start:stop, start:stop], mask[start:stop], keep, (start, step))
        Wt[stop:] -= U[start:stop, stop:].T @ errors
    return PrunedWeight((Wt * mask).T.contiguous(), mask.T.contiguous())


def _prune_block(
    Wt: Tensor, U: Tensor, mask: Tensor, keep: MaskRule, at: tuple[int, int]
) -> Float[Tensor, "columns out"]:
    """One block, in place; returns the errors (w − ŵ) / U_qq of each of its columns."""
    start, step = at
    errors = torch.empty_like(Wt)
    for q in range(len(Wt)):
        if q % step == 0:
            columns = slice(q, q + step)
            spread = U.diagonal()[columns, None]
            mask[columns] = keep((Wt[columns] / spread).square().T, start + q).T
        errors[q] = Wt[q].masked_fill(mask[q], 0.0) / U[q, q]
        Wt[q:] -= U[q, q:, None] * errors[q]
    return errors


class Correlations(NamedTuple):
    """A moment as its diagonal and the eigendecomposition of its correlations.

    Args:
        diagonal: diag S.
        values: eigenvalues of the correlations, ascending.
        squares: squares of the eigenvectors, which are columns.
    """

    diagonal: Float[Tensor, " n"]
    values: Float[Tensor, " k"]
    squares: Float[Tensor, "n k"]


def correlations(S: Moment) -> Correlations:
    """The correlations of a moment. In fp64, or in fp32 for many features: scores need no more than three digits.

    Args:
        S: positive definite; a diagonal moment has the single eigenvalue 1.

    Example:
        >>> correlations(torch.tensor([[4.0, 1.0], [1.0, 1.0]])).values
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    S = S.double()
    if S.ndim == 1:
        return Correlations(S, torch.ones_like(S[:1]), torch.ones_like(S)[:, None])
    single = len(S) >= SINGLE_FROM
    unit = unit_diagonal(S, torch.float32 if single else torch.float64)
    # A copy of the diagonal, which would otherwise keep S in memory during the decomposition.
    diagonal = S.diagonal().clone()
    del S
    values, vectors = torch.linalg.eigh(unit)
    floor = torch.finfo(torch.float32).eps if single else RELATIVE_FLOOR
    return Correlations(diagonal, values.double().clamp(min=floor * values[-1].item()), vectors.square_())


def residual_curvature(F: Correlations, H: Correlations, missing: float) -> Float[Tensor, "out in"]:
    """v_ij of the module's docstring: the curvature of each weight if the weights that stay compensate for it.

    Args:
        F: correlations of the outputs.
        H: correlations of the inputs.
        missing: s, the fraction of other weights that are pruned, in [0, 1).

    Example:
        Without correlations nothing compensates, and v = F_ii H_jj.

        >>> diagonal = correlations(torch.tensor([2.0, 3.0]))
        >>> residual_curvature(diagonal, diagonal, missing=0.5).round(decimals=4)
        tensor([[4., 6.],
                [6., 9.]], dtype=torch.float64)
    """
    gamma = missing / (1 - missing)
    dtype = F.squares.dtype if F.squares.dtype == H.squares.dtype else torch.float32
    middle = (1 / (F.values[:, None] * H.values + gamma)).to(dtype)
    # All terms are positive, so fp32 loses no digits.
    inverse = (F.squares.to(dtype) @ middle @ H.squares.to(dtype).T).double()
    # Where almost all weights are missing, this is the difference of two large numbers.
    relative = (1 / inverse - gamma).clamp(min=RELATIVE_FLOOR)
    return relative * F.diagonal[:, None] * H.diagonal
