"""S = R D R^T of a positive definite moment, R upper triangular with ones on its diagonal, D diagonal.

Compensation for errors of earlier columns needs R and D alone: errors E of a matrix cost tr(E S E^T) = Σ_j D_j ‖Z_j‖²
with Z = E R, and column j of Z is that of E plus the terms of the columns before it. No inverse is formed.

A moment of many columns is factored in fp32. Its rows and columns are scaled to a unit diagonal first, so that
features of very different size do no harm. Then a system with a known solution is solved. If the solution is not
found to two digits, the moment is factored again in fp64.

Notation: S (n, n) a moment; R (n, n), D (n,) its factors; L (n, n) a Cholesky factor.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from laconic.numerics.gram import symmetrize
from laconic.numerics.moments import root_factor, unit_diagonal

SINGLE_FROM = 512
"""The least number of columns of a moment that is factored in fp32."""
TOLERANCE = 1e-2
"""The largest relative error of a solution by a factor in fp32. A feedback with this error costs 1e-4 of the loss."""
PROBES = 2
"""Number of solutions that are compared."""
BLOCK = 256
"""Columns of the inverse that are computed at once."""
PANEL = 128
"""Columns of a factor in fp32 that are computed at once."""
ESTIMATES = 128
"""Number of random vectors by which the diagonal of an inverse is estimated."""


class UnitFactor(NamedTuple):
    """The factors of S = R D R^T.

    Args:
        R: upper triangular, with ones on the diagonal; in fp64, or rounded to fp32 for many columns.
        D: the diagonal of the middle factor, in fp64. D_j is the cost of an error of column j after later columns have
            compensated for it.

    Example:
        >>> R, D = UnitFactor.from_moment(torch.tensor([[3.0, 1.0], [1.0, 1.0]]))
        >>> R.tolist(), D.round(decimals=4).tolist()
        ([[1.0, 1.0], [0.0, 1.0]], [2.0, 1.0])
    """

    R: Float[Tensor, "n n"]
    D: Float[Tensor, " n"]

    @classmethod
    def from_moment(
        cls, S: Float[Tensor, "n n"], order: Integer[Tensor, " n"] | None = None, ridge: float = 0.0
    ) -> "UnitFactor":
        """The factors of a positive definite moment.

        Args:
            S: the moment, of which only the upper triangle is read; a singular one is raised as in `root_factor`.
            order: the order of its rows and columns; None for the present order.
            ridge: a number that is added to the diagonal.
        """
        order = torch.arange(len(S), device=S.device) if order is None else order
        diagonal = S.diagonal().double() + ridge
        factor = _factor_single(S, diagonal, order) if len(S) >= SINGLE_FROM else None
        if factor is not None:
            return factor
        # At most two matrices in fp64 are in memory beside S.
        matrix = symmetrize(S.double())
        matrix.diagonal().copy_(diagonal)
        # The factor of the reversed matrix is lower triangular.
        for axis in (0, 1):
            matrix = matrix.index_select(axis, order.flip(0))
        matrix = root_factor(matrix)
        R = matrix.flip(0, 1)
        del matrix
        roots = R.diagonal().clone()
        R.div_(roots)
        return cls(_with_unit_diagonal(R.float() if len(R) >= SINGLE_FROM else R), roots.square())

    def inverse_diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of S^{-1}, in fp64.

        Example:
            >>> UnitFactor.from_moment(torch.diag(torch.tensor([4.0, 2.0]))).inverse_diagonal()
            tensor([0.2500, 0.5000], dtype=torch.float64)
        """
        # S^{-1} = R^{-T} D^{-1} R^{-1}: the squares of a column of R^{-1}, over D, are summed. Blocks of columns are
        # computed from the bottom up, and only one of them is in memory.
        blocks = [slice(start, min(start + BLOCK, len(self.R))) for start in range(0, len(self.R), BLOCK)]
        eyes = [torch.eye(block.stop - block.start, dtype=self.R.dtype, device=self.R.device) for block in blocks]
        corners = [
            torch.linalg.solve_triangular(self.R[block, block], eye, upper=True, unitriangular=True)
            for block, eye in zip(blocks, eyes, strict=True)
        ]
        parts = []
        for k, block in enumerate(blocks):
            X = self.R.new_empty(block.stop, block.stop - block.start)
            X[block] = corners[k]
            for above, corner in zip(reversed(blocks[:k]), reversed(corners[:k]), strict=True):
                below = slice(above.stop, block.stop)
                X[above] = -corner @ (self.R[above, below] @ X[below])
            parts.append((1 / self.D[: block.stop]) @ X.square_().double())
        return torch.cat(parts)

    def estimate_inverse_diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of S^{-1}, in fp64, with a standard error of at most an eighth.

        With z of random signs, y = R^{-T} D^{-1/2} z has the covariance S^{-1}. This takes ESTIMATES n² multiplications
        in place of n³ / 3.

        Example:
            >>> UnitFactor.from_moment(torch.diag(torch.tensor([4.0, 4.0]))).estimate_inverse_diagonal()
            tensor([0.2500, 0.2500], dtype=torch.float64)
        """
        generator = torch.Generator().manual_seed(0)
        signs = 2 * torch.randint(2, (len(self.D), ESTIMATES), generator=generator).to(self.R) - 1
        scaled = signs * self.D.rsqrt().to(signs)[:, None]
        y = torch.linalg.solve_triangular(self.R.T, scaled, upper=False, unitriangular=True)
        return y.double().square().mean(1)


def _factor_single(
    S: Float[Tensor, "n n"], diagonal: Float[Tensor, " n"], order: Integer[Tensor, " n"]
) -> UnitFactor | None:
    """The factors in fp32; None if they are not exact enough.

    Args:
        S: the moment, of which only the part above the diagonal is read.
        diagonal: its diagonal, in fp64.
        order: the order of its rows and columns.
    """
    if not bool((diagonal > 0).all()):
        return None
    K = unit_diagonal(S, diagonal=diagonal).index_select(0, order).index_select(1, order)
    z = torch.randn(len(K), PROBES, generator=torch.Generator().manual_seed(0)).to(K.device)
    b = K @ z
    if not _factor_in_place(K):
        return None
    x = torch.linalg.solve_triangular(K, b, upper=True)
    x = torch.linalg.solve_triangular(K.T, x, upper=False)
    if not bool((x - z).norm() <= TOLERANCE * z.norm()):
        return None
    scale = diagonal[order].sqrt()
    roots = scale * K.diagonal()
    R = K.triu_().mul_(scale.float()[:, None]).div_(roots.float())
    return UnitFactor(_with_unit_diagonal(R), roots.square())


def _factor_in_place(K: Float[Tensor, "n n"]) -> bool:
    """Compute U, upper triangular with K = U U^T, in the upper triangle of K, from the last columns to the first.

    Returns:
        False if K is not positive definite in its dtype.
    """
    for start in range((len(K) - 1) // PANEL * PANEL, -1, -PANEL):
        stop = min(start + PANEL, len(K))
        panel, corner = K[:stop, start:stop], slice(start, stop)
        panel.addmm_(K[:stop, stop:], K[corner, stop:].T, alpha=-1)
        L, failed = torch.linalg.cholesky_ex(K[corner, corner].flip(0, 1))
        if failed:
            return False
        U = L.flip(0, 1)
        eye = torch.eye(len(U), dtype=K.dtype, device=K.device)
        K[corner, corner] = U
        K[:start, corner] @= torch.linalg.solve_triangular(U, eye, upper=True).T
    return True


def _with_unit_diagonal(R: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    R.diagonal().fill_(1)
    return R
