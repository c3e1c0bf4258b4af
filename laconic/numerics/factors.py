"""S = R D R^T of a positive definite moment, R upper triangular with ones on its diagonal, D diagonal.

Compensation for errors of earlier columns needs R and D alone: errors E of a matrix cost tr(E S E^T) = Σ_j D_j ‖Z_j‖²
with Z = E R, and column j of Z is that of E plus the terms of the columns before it. No inverse is formed.

A moment of many columns is factored in fp32. Its rows and columns are scaled to a unit diagonal first, so that
features of very different size do no harm. Then a system with a known solution is solved. If the solution is not
found to two digits, the moment is factored again in fp64. Only the upper triangle is stored (`Triangle`), and the
factor takes its place, so beside S there is half a matrix in memory.

Notation: S (n, n) a moment; R (n, n), D (n,) its factors; U (n, n) upper triangular with S = U U^T.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from laconic.numerics.moments import RELATIVE_FLOOR
from laconic.numerics.triangle import Triangle, empty_panels, panel_columns

SINGLE_FROM = 512
"""The least number of columns of a moment that is factored in fp32."""
TOLERANCE = 1e-2
"""The largest relative error of a solution by a factor in fp32. A feedback with this error costs 1e-4 of the loss."""
PROBES = 2
"""Number of solutions that are compared."""
STRIP = 128
"""Rows that are gathered at once."""
ESTIMATES = 128
"""Number of random vectors by which the diagonal of an inverse is estimated."""

Panels = Sequence[Float[Tensor, "_ _"]]
"""The panels of a triangle, each with its corner below its other rows."""


class UnitFactor(NamedTuple):
    """The factors of S = R D R^T.

    Args:
        R: upper triangular, with ones on the diagonal; in fp64, or in fp32 if that is exact enough for many columns.
        D: the diagonal of the middle factor, in fp64. D_j is the cost of an error of column j after later columns have
            compensated for it.

    Example:
        >>> R, D = UnitFactor.from_moment(torch.tensor([[3.0, 1.0], [1.0, 1.0]]))
        >>> R.dense().tolist(), D.round(decimals=4).tolist()
        ([[1.0, 1.0], [0.0, 1.0]], [2.0, 1.0])
    """

    R: Triangle
    D: Float[Tensor, " n"]

    @classmethod
    def from_moment(
        cls, S: Float[Tensor, "n n"], order: Integer[Tensor, " n"] | None = None, ridge: float = 0.0
    ) -> "UnitFactor":
        """The factors of a positive definite moment.

        Args:
            S: the moment; a singular one is raised as in `root_factor`.
            order: the order of its rows and columns; None for the present order.
            ridge: a number that is added to the diagonal.
        """
        order = torch.arange(len(S), device=S.device) if order is None else order
        diagonal = S.diagonal().double() + ridge
        single = _factor_single(S, diagonal, order) if len(S) >= SINGLE_FROM else None
        return _factor_double(S, diagonal, order) if single is None else single

    def inverse_diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of S^{-1}, in fp64.

        Example:
            >>> UnitFactor.from_moment(torch.diag(torch.tensor([4.0, 2.0]))).inverse_diagonal()
            tensor([0.2500, 0.5000], dtype=torch.float64)
        """
        # S^{-1} = R^{-T} D^{-1} R^{-1}: the squares of a column of R^{-1}, over D, are summed.
        inverse = self.R.solve(torch.eye(len(self.D), dtype=self.R.corners[0].dtype, device=self.D.device))
        return (1 / self.D) @ inverse.square_().double()

    def estimate_inverse_diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of S^{-1}, in fp64, with a standard error of at most an eighth.

        With z of random signs, y = R^{-T} D^{-1/2} z has the covariance S^{-1}. This takes ESTIMATES n² multiplications
        in place of n³ / 3.

        Example:
            >>> UnitFactor.from_moment(torch.diag(torch.tensor([4.0, 4.0]))).estimate_inverse_diagonal()
            tensor([0.2500, 0.2500], dtype=torch.float64)
        """
        generator = torch.Generator().manual_seed(0)
        signs = 2 * torch.randint(2, (len(self.D), ESTIMATES), generator=generator).to(self.R.corners[0]) - 1
        y = self.R.solve_transposed(signs * self.D.rsqrt().to(signs)[:, None])
        return y.double().square().mean(1)


def _factor_single(
    S: Float[Tensor, "n n"], diagonal: Float[Tensor, " n"], order: Integer[Tensor, " n"]
) -> UnitFactor | None:
    """The factors in fp32; None if they are not exact enough.

    Args:
        S: the moment, without its diagonal.
        diagonal: its diagonal, in fp64.
        order: the order of its rows and columns.
    """
    if not bool((diagonal > 0).all()):
        return None
    panels = _gather(S, torch.ones_like(diagonal), order, torch.float32, diagonal.rsqrt())
    z = torch.randn(len(S), PROBES, generator=torch.Generator().manual_seed(0)).to(panels[0])
    b = _multiply(panels, z)
    if not _factor_in_place(panels):
        return None
    U = Triangle.from_panels(panels)
    x = U.solve_transposed(U.solve(b))
    if not bool((x - z).norm() <= TOLERANCE * z.norm()):
        return None
    return _to_unit(panels, diagonal[order].sqrt())


def _factor_double(S: Float[Tensor, "n n"], diagonal: Float[Tensor, " n"], order: Integer[Tensor, " n"]) -> UnitFactor:
    """The factors in fp64; the arguments are those of `_factor_single`."""
    jitter = (RELATIVE_FLOOR * diagonal.mean()).clamp(min=torch.finfo(diagonal.dtype).tiny)
    panels = _gather(S, diagonal, order, torch.float64)
    while not _factor_in_place(panels) and jitter.isfinite():
        del panels
        panels = _gather(S, diagonal + jitter, order, torch.float64)
        jitter = 10 * jitter
    return _to_unit(panels, None)


def _gather(
    S: Float[Tensor, "n n"],
    diagonal: Float[Tensor, " n"],
    order: Integer[Tensor, " n"],
    dtype: torch.dtype,
    scale: Float[Tensor, " n"] | None = None,
) -> list[Float[Tensor, "_ _"]]:
    """The panels of a symmetric matrix in another order; their corners are whole.

    Args:
        S: the matrix.
        diagonal: the diagonal of the result, in the order of S.
        order: the order of the rows and columns of the result.
        dtype: of the result.
        scale: by which the rows and columns of S are multiplied; None for 1.
    """
    panels = empty_panels(len(S), dtype, S.device)
    columns = panel_columns(len(S))
    for start in range(0, len(S), STRIP):
        rows = order[start : start + STRIP]
        # Whole rows are copied first: single numbers from all over S would take longer than the products.
        strip = S.index_select(0, rows)
        if scale is not None:
            strip = (strip * scale[rows, None]).mul_(scale)
        strip = strip.to(dtype)
        for own, panel in zip(columns, panels, strict=True):
            if start < own.stop:
                panel[start : start + STRIP] = strip.index_select(1, order[own])
    for own, panel in zip(columns, panels, strict=True):
        panel[own].diagonal().copy_(diagonal[order[own]])
    return panels


def _multiply(panels: Panels, X: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """S X for gathered panels of S."""
    Y = torch.zeros_like(X)
    for own, above, corner in Triangle.from_panels(panels).panels:
        Y[: own.start] += above @ X[own]
        Y[own] += above.T @ X[: own.start] + corner @ X[own]
    return Y


def _factor_in_place(panels: Panels) -> bool:
    """Replace the gathered panels of S by those of U, from the last to the first.

    Returns:
        False if S is not positive definite in its dtype.
    """
    for k, own in reversed(list(enumerate(panel_columns(len(panels[-1]))))):
        panel, above, corner = panels[k], panels[k][: own.start], panels[k][own]
        for later in panels[k + 1 :]:
            panel.addmm_(later[: own.stop], later[own].T, alpha=-1)
        L, failed = torch.linalg.cholesky_ex(corner.flip(0, 1))
        if failed:
            return False
        corner.copy_(L.flip(0, 1))
        above.copy_(torch.linalg.solve_triangular(corner.T, above, upper=False, left=False))
    return True


def _to_unit(panels: Panels, scale: Float[Tensor, " n"] | None) -> UnitFactor:
    """The factors R and D for the panels of U, which become those of R.

    Args:
        panels: the panels of U.
        scale: by which the rows of U are multiplied first; None for 1.
    """
    U = Triangle.from_panels(panels)
    roots = torch.cat([corner.diagonal() for corner in U.corners]).double()
    roots = roots if scale is None else scale * roots
    for own, panel in zip(U.columns, panels, strict=True):
        if scale is not None:
            panel.mul_(scale[: own.stop].to(panel)[:, None])
        panel.div_(roots[own].to(panel))
        panel[own].diagonal().fill_(1)
    return UnitFactor(U, roots.square())
