"""Removing groups of columns from a matrix (those of a head, or one channel), and refitting the others exactly.

Optimal brain surgeon for groups under ½ tr(F E H E^T): removing the columns S of W, with the others refitted, costs

    ½ tr(F W_S [H^{-1}]_SS^{-1} W_S^T),        W_K ← W H_{:K} H_KK^{-1},

as B. Hassibi, D. G. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (NeurIPS 1992) has it
for one weight; F drops out of the refit. Parts are removed one after another, the cheapest at each step. P = H_KK^{-1}
of the remaining columns K is updated by Schur complements.

Notation: W (m, n) with m = out, n = in; H (n, n) the second moment of its inputs, F (m, m) that of the gradients at its
outputs; G with G^T G = W^T F W; d the columns of one part.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.numerics.moments import root_factor

DAMPING = 0.2
"""λ as a fraction of the mean diagonal. Calibration texts have a few thousand tokens, and a feed-forward about as many
channels; with less damping the refit fits the noise of H."""

FLOOR = 1e-6
"""λ, as a fraction of the mean diagonal, of a column whose own diagonal is below this fraction. Removing an input that
was always zero then costs almost nothing."""

PENDING = 64
"""Removed columns after which P and G are updated, for all of them in one product."""


class Elimination:
    """One matrix that loses parts of `size` columns, one by one. In fp64.

    Args:
        W: the matrix.
        H: moment of the inputs, positive definite.
        F: moment of the output gradients.
        size: d, columns of a part.

    Example:
        >>> elimination = Elimination(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.eye(1), size=1)
        >>> elimination.costs().round(decimals=4)
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """

    def __init__(
        self, W: Float[Tensor, "out in"], H: Float[Tensor, "in in"], F: Float[Tensor, "out out"], size: int
    ) -> None:
        self._size = size
        self._P = torch.cholesky_inverse(root_factor(H))
        self._G = root_factor(F).T @ W.double()
        n = W.shape[1]
        self._gone = torch.zeros(n // size, dtype=torch.bool, device=self._P.device)
        # P − U U^T and G − V U^T are the present values, after the latest removals.
        self._U, self._V = self._P.new_zeros(n, 0), self._P.new_zeros(len(self._G), 0)
        # P is zero in removed parts; an identity in its place can be factored.
        self._identity = torch.eye(size, dtype=self._P.dtype, device=self._P.device)
        self._refresh()

    @property
    def count(self) -> int:
        """Number of parts, removed ones included."""
        return self._P.shape[0] // self._size

    def costs(self) -> Float[Tensor, " parts"]:
        """½ tr(F W_S P_SS^{-1} W_S^T) of each part S, with the refitted W; ∞ for removed parts."""
        if self._size == 1:
            costs = 0.5 * (self._products / self._blocks)[:, 0, 0]
        else:
            L = torch.linalg.cholesky(self._blocks)
            costs = 0.5 * torch.cholesky_solve(self._products, L).diagonal(dim1=1, dim2=2).sum(1)
        return costs.clamp(min=0).masked_fill(self._gone, torch.inf)

    def remove(self, part: int) -> None:
        """Remove one part and refit the others."""
        columns = slice(part * self._size, (part + 1) * self._size)
        L = torch.linalg.cholesky(self._blocks[part])
        U = _divide(self._P[:, columns] - self._U @ self._U[columns].T, L)
        V = _divide(self._G[:, columns] - self._V @ self._U[columns].T, L)
        self._gone[part] = True
        self._update_blocks(U, V)
        self._blocks[part] = self._identity
        self._U, self._V = torch.cat([self._U, U], dim=1), torch.cat([self._V, V], dim=1)
        if self._U.shape[1] >= PENDING:
            self._P.addmm_(self._U, self._U.T, alpha=-1)
            self._G.addmm_(self._V, self._U.T, alpha=-1)
            self._U, self._V = self._U[:, :0], self._V[:, :0]
            self._refresh()

    def _update_blocks(self, U: Float[Tensor, "in d"], V: Float[Tensor, "k d"]) -> None:
        """Update the blocks that the costs are computed from, after P lost U U^T and G lost V U^T."""
        X = self._G.T @ V - self._U @ (self._V.T @ V)
        u, x, v = (matrix.unflatten(0, (-1, self._size)) for matrix in (U, X, U @ (V.T @ V)))
        cross = _times_transposed(x, u)
        self._products = self._products - cross - cross.mT + _times_transposed(v, u)
        self._blocks = self._blocks - _times_transposed(u, u)

    def _refresh(self) -> None:
        g = self._G.unflatten(1, (-1, self._size)).movedim(1, 0)
        self._products = g.mT @ g
        p = self._P.unflatten(0, (-1, self._size)).unflatten(2, (-1, self._size))
        self._blocks = p.diagonal(dim1=0, dim2=2).movedim(-1, 0).clone()
        self._blocks[self._gone] = self._identity


def removal_order(eliminations: Sequence[Elimination], least: int = 1) -> tuple[list[int], list[float]]:
    """The order in which parts are removed, cheapest first, and the cost of each removal.

    Args:
        eliminations: matrices that lose the same parts; their costs add up.
        least: how many parts stay.

    Example:
        >>> elimination = Elimination(torch.tensor([[3.0, 1.0, 2.0]]), torch.eye(3), torch.eye(1), size=1)
        >>> removal_order([elimination])[0]
        [1, 2]
    """
    order, costs = [], []
    for _ in range(eliminations[0].count - least):
        total = torch.stack([elimination.costs() for elimination in eliminations]).sum(0)
        part = int(total.argmin())
        order.append(part)
        costs.append(total[part].item())
        for elimination in eliminations:
            elimination.remove(part)
    return order, costs


def damp_active(H: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """H + λ I, which draws the refit towards W; λ is smaller for inputs that were hardly ever active. In fp64.

    Args:
        H: moment of the inputs; if it is all zero, the result is the identity.

    Example:
        >>> damp_active(torch.diag(torch.tensor([1.0, 1.0]))).diagonal()
        tensor([1.2000, 1.2000], dtype=torch.float64)
    """
    H = H.double()
    diagonal = H.diagonal()
    level = diagonal.mean()
    if level <= 0:
        return torch.eye(len(H), dtype=H.dtype, device=H.device)
    return H + torch.where(diagonal > FLOOR * level, DAMPING * level, FLOOR * level).diag()


def refit_columns(
    W: Float[Tensor, "out in"], H: Float[Tensor, "in in"], kept: Int[Tensor, " kept"]
) -> Float[Tensor, "out kept"]:
    """W H_{:K} H_KK^{-1}: the remaining columns of least ½ tr(F E H E^T), for any F. In fp64.

    Args:
        W: the matrix.
        H: moment of the inputs, positive definite.
        kept: numbers of the remaining columns K.

    Example:
        >>> H = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> refit_columns(torch.tensor([[1.0, 2.0]]), H, kept=torch.tensor([1]))
        tensor([[2.5000]], dtype=torch.float64)
    """
    H = H.double()
    return torch.cholesky_solve((W.double() @ H[:, kept]).T, root_factor(H[kept][:, kept])).T


def part_columns(parts: Sequence[int], size: int) -> Int[Tensor, " columns"]:
    """The columns of some parts of `size` columns each.

    Example:
        >>> part_columns([0, 2], size=2)
        tensor([0, 1, 4, 5])
    """
    starts = torch.tensor(list(parts), dtype=torch.long) * size
    return (starts[:, None] + torch.arange(size)).flatten()


def _times_transposed(a: Float[Tensor, "parts d d"], b: Float[Tensor, "parts d d"]) -> Float[Tensor, "parts d d"]:
    """a b^T, part by part; thousands of products of single numbers are slow as matrix products."""
    return a * b if a.shape[1] == 1 else a @ b.mT


def _divide(X: Float[Tensor, "k d"], L: Float[Tensor, "d d"]) -> Float[Tensor, "k d"]:
    """X L^{-T}."""
    return torch.linalg.solve_triangular(L, X.T, upper=False).T
