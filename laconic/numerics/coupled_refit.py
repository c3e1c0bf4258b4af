"""The best values of the weights that a mask keeps, where rows compensate for each other.

Where F is not diagonal, other rows can compensate as well as other columns. With the mask M and E = W − Z, the least
½ tr(F E H E^T) has

    M ∘ (F E H) = 0,    Z = M ∘ Z,

one positive definite system for all kept weights, solved by conjugate gradients with products F D H of a direction D.
Rows and columns are scaled so that the diagonals of F and H are 1.

Notation: W (m, n) with m = out, n = in; H (n, n) and F (m, m) positive definite; M (m, n) the mask; D direction.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.numerics.moments import unit_diagonal
from laconic.numerics.products import product
from laconic.numerics.refit import conjugate_gradients

TOLERANCE = 1e-3
"""The iteration ends once the norm of the residual is below this fraction of the first residual."""

STEPS = 60
"""Largest number of steps. Further steps lower the loss for the moments that were measured, and hardly for others."""


@dataclass(frozen=True)
class CoupledLoss:
    """The loss ½ tr(F E H E^T), scaled so that the diagonals of F and H are 1.

    Args:
        F: moment of the output gradients, in fp32.
        H: moment of the inputs, in fp32.
        rows: the factor of each row, (out, 1).
        columns: the factor of each column.
    """

    F: Float[Tensor, "out out"]
    H: Float[Tensor, "in in"]
    rows: Float[Tensor, "out 1"]
    columns: Float[Tensor, " in"]

    @classmethod
    def from_moments(cls, F: Float[Tensor, "out out"], H: Float[Tensor, "in in"]) -> "CoupledLoss":
        """The loss for two positive definite moments in fp64."""
        rows, columns = F.diagonal().rsqrt()[:, None], H.diagonal().rsqrt()
        return cls(unit_diagonal(F), unit_diagonal(H), rows, columns)

    def refit(self, W: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Kept weights that minimise the loss. In fp64.

        The change of the kept weights is computed in fp32, which is twice as fast and reaches the same loss.

        Args:
            W: the matrix.
            mask: True at kept weights.

        Returns:
            Z, zero outside the mask.
        """
        W = W.double()
        removed = W * ~mask / self.rows / self.columns
        size = removed.norm()
        if size == 0:
            return W * mask
        first = mask * self._multiply((removed / size).float())
        norm = first.norm()
        if norm == 0:
            return W * mask
        scale = size * norm
        residual = (first / norm).view(1, -1)
        added = conjugate_gradients(
            lambda D: self._multiply(D.view(W.shape)).view(1, -1),
            lambda R: R,
            (torch.zeros_like(residual), residual),
            mask.reshape(1, -1),
            (TOLERANCE, STEPS),
        )
        return W * mask + scale * added.view(W.shape).double() * self.rows * self.columns

    def _multiply(self, D: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """F D H."""
        return product(product(self.F, D), self.H)


def refit_coupled(
    W: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], F: Float[Tensor, "out out"], H: Float[Tensor, "in in"]
) -> Float[Tensor, "out in"]:
    """Kept weights that minimise tr(F (W − Z) H (W − Z)^T), in which rows compensate for each other. In fp64.

    Args:
        W: the matrix.
        mask: True at kept weights.
        F: moment of the output gradients, positive definite.
        H: moment of the inputs, positive definite.

    Returns:
        Z, zero outside the mask.

    Example:
        >>> mask, F = torch.tensor([[False], [True]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> refit_coupled(torch.tensor([[2.0], [1.0]]), mask, F, torch.eye(1).double()).round(decimals=2)
        tensor([[0.],
                [2.]], dtype=torch.float64)
    """
    return CoupledLoss.from_moments(F, H).refit(W, mask)
