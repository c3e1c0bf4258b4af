"""S = R D R^T of a positive definite moment, R upper triangular with ones on its diagonal, D diagonal.

Compensation for errors of earlier columns needs R and D alone: errors E of a matrix cost tr(E S E^T) = Σ_j D_j ‖Z_j‖²
with Z = E R, and column j of Z is that of E plus the terms of the columns before it. No inverse is formed.

A moment of many columns is factored in fp32. Its rows and columns are scaled to a unit diagonal first, so that
features of very different size do no harm. Then a system with a known solution is solved. If the solution is not
found to three digits, the moment is factored again in fp64.

Notation: S (n, n) a moment; R (n, n), D (n,) its factors; L (n, n) a Cholesky factor.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from laconic.numerics.moments import root_factor, unit_diagonal

SINGLE_FROM = 1024
"""The least number of columns of a moment that is factored in fp32."""
TOLERANCE = 1e-3
"""The largest relative error of a solution by a factor in fp32. A feedback with this error costs 1e-6 of the loss."""
PROBES = 2
"""Number of solutions that are compared."""
BLOCK = 256
"""Columns of the inverse that are computed at once."""


class UnitFactor(NamedTuple):
    """The factors of S = R D R^T.

    Args:
        R: upper triangular, with ones on the diagonal; in fp64, or in fp32 for many columns.
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
    def from_moment(cls, S: Float[Tensor, "n n"], order: Integer[Tensor, " n"] | None = None) -> "UnitFactor":
        """The factors of a positive definite moment.

        Args:
            S: the moment; a singular one is raised as in `root_factor`.
            order: the order of its rows and columns; None for the present order.
        """
        backwards = torch.arange(len(S), device=S.device).flip(0) if order is None else order.flip(0)
        factor = _factor_single(S, backwards) if len(S) >= SINGLE_FROM else None
        return cls._from_root(root_factor(S[backwards][:, backwards])) if factor is None else factor

    @classmethod
    def _from_root(cls, L: Float[Tensor, "n n"], scale: Float[Tensor, " n"] | None = None) -> "UnitFactor":
        """The factors from the Cholesky factor of S with its rows and columns reversed.

        Args:
            L: the Cholesky factor, overwritten; of the scaled moment, where there is a `scale`.
            scale: the root of the diagonal of S, reversed.
        """
        diagonal = L.diagonal().clone()
        roots = diagonal.double()
        R = L.div_(diagonal).flip(0, 1)
        if scale is not None:
            scales = scale.to(R.dtype).flip(0)
            R = R.mul_(scales[:, None]).div_(scales)
            roots = roots * scale
        R.diagonal().fill_(1)
        return cls(R, roots.square().flip(0))

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


def _factor_single(S: Float[Tensor, "n n"], backwards: Integer[Tensor, " n"]) -> UnitFactor | None:
    """The factors in fp32; None if they are not exact enough."""
    diagonal = S.diagonal()[backwards].double()
    if not bool((diagonal > 0).all()):
        return None
    K = unit_diagonal(S.double())[backwards][:, backwards]
    L, failed = torch.linalg.cholesky_ex(K)
    if failed:
        return None
    z = torch.randn(len(K), PROBES, generator=torch.Generator().manual_seed(0)).to(K.device)
    error = torch.cholesky_solve(K @ z, L) - z
    return UnitFactor._from_root(L, diagonal.sqrt()) if bool(error.norm() <= TOLERANCE * z.norm()) else None
