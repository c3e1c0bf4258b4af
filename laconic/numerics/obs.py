"""The optimal brain surgeon, column by column: each weight that goes is made up for by those to the right of it.

Paper: E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
arXiv 2301.00774, algorithm 1; B. Hassibi, D. Stork, "Second order derivatives for network pruning", NeurIPS 1992. With
the Hessian H of a row, removing w_q costs ½ w_q² / [H^{-1}]_qq and moves the others by
−(w_q / [H^{-1}]_qq) H^{-1}_{:,q}.

Notation: U upper triangular with H^{-1} = U^T U. Row q of U is that of the inverse of the Hessian of columns q, q + 1,
…, divided by its root: all that columns to the right of q need to know.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.numerics.psd import InputMoment, root_factor, shrink

BLOCK = 128
"""Columns after which what is left over is moved to the columns further right, in one matrix product."""

Choice = Callable[[Float[Tensor, "out columns"], int], Bool[Tensor, "out columns"]]
"""Which weights of some columns are kept: of their scores w² / [H^{-1}]_qq and the number of the first column."""


class Pruned(NamedTuple):
    """A matrix with its zeros, and which weights were kept."""

    W: Float[Tensor, "out in"]
    mask: Bool[Tensor, "out in"]


def damped(C: InputMoment, damping: float) -> InputMoment:
    """C + damping · mean(diag C) · I in fp64; the identity where C is all zero."""
    C = C.double()
    diagonal = C if C.ndim == 1 else C.diagonal()
    level = damping * diagonal.mean()
    if diagonal.mean() <= 0:
        return shrink(C, 0.0)
    return C + level if C.ndim == 1 else C + level * torch.eye(len(C), dtype=C.dtype, device=C.device)


def inverse_factor(H: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """U, upper triangular, with H^{-1} = U^T U; a singular H is raised as in `root_factor`."""
    # H = R R^T with R upper triangular, so U = R^{-1}: no inverse is formed on the way.
    R = root_factor(H.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(R, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=True)


def sweep(W: Float[Tensor, "out in"], U: Float[Tensor, "in in"], keep: Choice, step: int = BLOCK) -> Pruned:
    """From left to right, `keep` decides on `step` columns at a time, with all errors to their left made up for."""
    # Transposed, so that a column lies in one piece of memory.
    Wt = W.double().T.clone(memory_format=torch.contiguous_format)
    mask = torch.ones_like(Wt, dtype=torch.bool)
    n = len(Wt)
    block = max(step, BLOCK - BLOCK % step)
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = _through(Wt[start:stop], U[start:stop, start:stop], mask[start:stop], keep, (start, step))
        Wt[stop:] -= U[start:stop, stop:].T @ errors
    return Pruned((Wt * mask).T.contiguous(), mask.T.contiguous())


def _through(Wt: Tensor, U: Tensor, mask: Tensor, keep: Choice, at: tuple[int, int]) -> Float[Tensor, "columns out"]:
    """One block, in place; the errors (w − ŵ) / U_qq of each of its columns."""
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
