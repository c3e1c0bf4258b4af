"""The best values of numbers that several weights share: scales of groups, entries of tables.

Each weight is one of the numbers p times a factor, w_ij = f_ij p[k_ij], so the weights are linear in p, W = L p, and
the least tr((W* − L p) H (W* − L p)^T) solves L^T (L p H) = L^T (W* H). `refit_tied` finds it by conjugate gradients
from the present p, preconditioned by the diagonal of L^T (L · H); every step lowers the loss.

For tables, where the factors are 1, `refit_codebook` solves the k equations of each row directly: a row of Ŵ is T c, c
(k, n) telling which of k values each weight has, and ½ (w − T c) C (w − T c)^T is least at T (c C c^T) = w C c^T. C
couples all weights, which k-means considers one by one. Rows that share a table add up their equations, weighted by F.

Notation: W* (m, n) the target, H (n, n) positive definite, k (m, n) indices into p, f (m, n) factors.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

TOLERANCE = 1e-3
"""Done once the residual, in the norm of the preconditioner, is below this fraction of what it was at first."""

STEPS = 30
"""At most this many; the remaining error is smaller than that of rounding p to 16 bits."""


class TiedWeights(NamedTuple):
    """Which of the shared numbers each weight is, and the factor it is multiplied by.

    Args:
        indices: the index of each weight's number.
        factors: the factor of each weight; 0 for a weight that is always zero.

    Example:
        >>> tied = TiedWeights(torch.tensor([[0, 1, 0]]), torch.tensor([[1.0, 1.0, 2.0]]))
        >>> tied.weights(torch.tensor([3.0, 5.0]))
        tensor([[3., 5., 6.]])
    """

    indices: Integer[Tensor, "out in"]
    factors: Float[Tensor, "out in"]

    def weights(self, p: Float[Tensor, " k"]) -> Float[Tensor, "out in"]:
        """L p: the weights for the numbers p."""
        return p[self.indices] * self.factors

    def sums(self, X: Float[Tensor, "out in"], count: int) -> Float[Tensor, " k"]:
        """L^T X, the transpose of `weights`; `count` is the length of p."""
        return X.new_zeros(count).index_add_(0, self.indices.view(-1), (X * self.factors).view(-1))


def refit_tied(
    W: Float[Tensor, "out in"], tied: TiedWeights, p: Float[Tensor, " k"], H: Float[Tensor, "in in"]
) -> Float[Tensor, " k"]:
    """The shared numbers whose weights come nearest to a matrix. In fp64.

    Args:
        W: the target.
        tied: which weights share which number.
        p: the present numbers; those that no weight uses do not change.
        H: moment of the inputs.

    Example:
        >>> tied = TiedWeights(torch.tensor([[0, 0]]), torch.ones(1, 2))
        >>> refit_tied(torch.tensor([[1.0, 3.0]]), tied, torch.zeros(1), torch.eye(2))
        tensor([2.], dtype=torch.float64)
    """
    H = H.double()
    p, tied = p.double(), tied._replace(factors=tied.factors.double())
    diagonal = tied.sums(tied.factors * H.diagonal(), len(p))
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp(min=torch.finfo(H.dtype).tiny), 0)
    R = tied.sums((W.double() - tied.weights(p)) @ H, len(p))
    D = R * inverse
    energy = R @ D
    goal = TOLERANCE**2 * energy
    for _ in range(STEPS):
        if energy <= goal:
            break
        LDH = tied.sums(tied.weights(D) @ H, len(p))
        step = energy / (D @ LDH)
        p = p + step * D
        R = R - step * LDH
        before, energy = energy, R @ (R * inverse)
        D = R * inverse + energy / before * D
    return p


def grid_indices(shape: tuple[int, int], group: int | None, device: torch.device) -> Integer[Tensor, "out in"]:
    """For each weight, the index of its group's scale in a row-major array of scales (out, groups).

    Args:
        shape: (out, in).
        group: columns of a row that share a scale; None where all weights share one.
        device: where to create the result.

    Example:
        >>> grid_indices((2, 4), 2, torch.device("cpu"))
        tensor([[0, 0, 1, 1],
                [2, 2, 3, 3]])
    """
    rows, columns = shape
    if group is None:
        return torch.zeros(shape, dtype=torch.int64, device=device)
    groups = torch.arange(columns, device=device) // group
    return torch.arange(rows, device=device)[:, None] * -(-columns // group) + groups


RIDGE = 1e-8
"""Keeps a value where it was if no weight has it, or its inputs were never active."""


def refit_codebook(
    W: Float[Tensor, "out in"],
    indices: Integer[Tensor, "out in"],
    V: Float[Tensor, "tables k"],
    C: Float[Tensor, "in in"],
    F: Float[Tensor, " out"],
) -> Float[Tensor, "tables k"]:
    """The values of tables that minimise Σ_i F_i e_i C e_i^T for fixed codes, e_i the error of row i. In fp64.

    Args:
        W: the matrix.
        indices: the index of each weight's value; k for a weight that is zero.
        V: the present values, of each row or, as one row, of all rows together.
        C: moment of the inputs.
        F: weight of each row.

    Example:
        >>> refit_codebook(torch.tensor([[1.0, 3.0]]), torch.tensor([[0, 0]]), torch.zeros(1, 1), torch.eye(2).double(),
        ...     torch.ones(1)).round(decimals=4)
        tensor([[2.]], dtype=torch.float64)
    """
    k = V.shape[1]
    WC = W.double() @ C
    systems = zip(F.tolist(), indices.long(), WC, strict=True)
    if len(V) == 1:
        left, right = V.new_zeros(k, k).double(), V.new_zeros(k).double()
        for weight, here, target in systems:
            left += weight * _moment(here, C, k)
            right += weight * _total(here, target, k)
        return _solve_ridge(left, right, V[0].double())[None]
    rows = [
        _solve_ridge(_moment(here, C, k), _total(here, target, k), values)
        for (_, here, target), values in zip(systems, V.double(), strict=True)
    ]
    return torch.stack(rows)


def _solve_ridge(left: Tensor, right: Tensor, V: Tensor) -> Float[Tensor, " k"]:
    level = RIDGE * left.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny / RIDGE)
    left.diagonal().add_(level)
    return torch.linalg.solve(left, right + level * V)


def _moment(indices: Integer[Tensor, " in"], C: Float[Tensor, "in in"], k: int) -> Float[Tensor, "k k"]:
    """c C c^T."""
    rows = C.new_zeros(k + 1, len(C)).index_add_(0, indices, C)
    return C.new_zeros(k + 1, k + 1).index_add_(1, indices, rows)[:k, :k]


def _total(indices: Integer[Tensor, " in"], target: Float[Tensor, " in"], k: int) -> Float[Tensor, " k"]:
    """The sum of the numbers at each index."""
    return target.new_zeros(k + 1).index_add_(0, indices, target)[:k]
