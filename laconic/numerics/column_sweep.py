"""One sweep over the columns of a matrix: each is rounded, and later columns compensate for its errors.

With H = R D R^T, R upper triangular with ones on the diagonal, and E = W − Ŵ, the loss is

    ½ tr(E H E^T) = ½ Σ_q D_q ‖w_q + Σ_{k<q} R_kq e_k − ŵ_q‖²,

so column q is rounded to the grid values nearest to w_q plus the terms of earlier errors. These are the weights that
GPTQ arrives at with the factor U of H^{-1} = U^T U (J. Chee et al., "QuIP: 2-Bit Quantization of Large Language Models
With Guarantees", NeurIPS 2023, arXiv 2307.13304, theorem 6). The errors e are differences of stored numbers, and each
weight is computed anew from them, so nothing adds up along the sweep and fp32 is exact enough.

Notation: W (m, n), stored transposed, (n, m), so that a column is contiguous, and in the order of the sweep.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from laconic.numerics.grid import Grid

BLOCK = 128
"""Number of columns that get the terms of all earlier errors in one matrix product."""


class WeightGrids(NamedTuple):
    """The grid of every single weight, in fp32. With a scale of 0, the only value of a weight is 0.

    Args:
        scale: s of each weight.
        inverse: 1 / s, or 0.
        zero: z of each weight.
        bits: bits of a code.

    Example:
        >>> grid = Grid(torch.tensor([[2.0]]), torch.tensor([[1.0]]), bits=2, group=2)
        >>> WeightGrids.from_grid(grid, torch.arange(2), mask=torch.tensor([[True, False]])).scale
        tensor([[2., 0.]])
    """

    scale: Float[Tensor, "#out #in"]
    inverse: Float[Tensor, "#out #in"]
    zero: Float[Tensor, "#out #in"]
    bits: int

    @classmethod
    def from_grid(
        cls, grid: Grid, columns: Integer[Tensor, " some"], mask: Bool[Tensor, "out in"] | None
    ) -> "WeightGrids":
        """The grids of some columns.

        Args:
            grid: the grids of the matrix.
            columns: numbers of the columns.
            mask: False at weights that are to be 0, in the order of the matrix; None to prune none.
        """
        scale, zero = (part.float() for part in grid.scale_and_zero(columns))
        if mask is not None:
            scale = scale * mask[:, columns]
        return cls(scale, torch.where(scale == 0, 0, 1 / scale), zero, grid.bits)

    @property
    def T(self) -> "WeightGrids":
        """The transpose, contiguous."""
        return self._map(lambda part: part.T.contiguous())

    def take_rows(self, rows: Integer[Tensor, " some"] | slice) -> "WeightGrids":
        """The grids of some rows."""
        return self._map(lambda part: part[rows] if len(part) > 1 else part)

    def expand_rows(self, rows: int) -> "WeightGrids":
        """The same grids, repeated for `rows` rows if they have only one."""
        return self._map(lambda part: part.expand(rows, -1))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "WeightGrids":
        return WeightGrids(function(self.scale), function(self.inverse), function(self.zero), self.bits)


class ColumnSweep:
    """A sweep over the columns of one matrix, which can be repeated with other grids.

    Args:
        Wt: the transposed matrix, in the order of the sweep.
        R: unit factor of the reordered H.

    Example:
        Half of the first error is added to the second column before it is rounded.

        >>> R = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        >>> sweep = ColumnSweep(torch.tensor([[0.4], [0.4]]), R)
        >>> values = WeightGrids.from_grid(Grid(torch.ones(1, 1), torch.zeros(1, 1), 2, None), torch.arange(2), None).T
        >>> sweep.round(slice(0, 2), values.take_rows).T.tolist(), sweep.compensated.T.tolist()
        ([[0, 1]], [[0.4000000059604645, 0.6000000238418579]])
    """

    def __init__(self, Wt: Float[Tensor, "in out"], R: Float[Tensor, "in in"]) -> None:
        self.Wt, self._R = Wt, R.to(Wt.dtype)
        self.compensated = torch.empty_like(Wt)
        """The weights at the moment they were rounded, (in, out)."""
        self._errors = torch.empty_like(Wt)

    def arriving(self, columns: slice) -> Float[Tensor, "some out"]:
        """Some of the columns after the best compensation for all errors before the first of them.

        Args:
            columns: the columns; all before them are rounded.
        """
        weights, R = self.Wt[columns], self._R[columns, columns]
        terms = self._R[: columns.start, columns].T @ self._errors[: columns.start]
        return weights + torch.linalg.solve_triangular(R.T, terms, upper=False, unitriangular=True)

    @torch.no_grad()
    def round(self, columns: slice, grids: Callable[[slice], WeightGrids]) -> UInt8[Tensor, "some out"]:
        """Round some columns; all before them are rounded.

        Args:
            columns: the columns.
            grids: returns the grids of a part of them, transposed like the matrix; the first of them is column 0.

        Returns:
            The codes.
        """
        codes = self.Wt.new_empty((columns.stop - columns.start, self.Wt.shape[1]), dtype=torch.uint8)
        for part in (slice(at, min(at + BLOCK, len(codes))) for at in range(0, len(codes), BLOCK)):
            block = slice(columns.start + part.start, columns.start + part.stop)
            before, present = self._errors[: block.start], self.compensated[block]
            torch.addmm(self.Wt[block], self._R[: block.start, block].T, before, out=present)
            codes[part] = _round_block(self.Wt[block], present, self._errors[block], self._R[block, block], grids(part))
        return codes

    def losses(self, D: Float[Tensor, " in"]) -> Float[Tensor, " out"]:
        """Σ_q D_q (w_q − ŵ_q)² of every row of W after a whole sweep, in fp64.

        Args:
            D: the diagonal of the middle factor of H.
        """
        parts = (part.split(BLOCK) for part in (self.compensated, self.Wt, self._errors, D.double()))
        return torch.stack([d @ (w - W + E).double().square() for w, W, E, d in zip(*parts, strict=True)]).sum(0)


def _round_block(Wt: Tensor, present: Tensor, errors: Tensor, R: Tensor, grids: WeightGrids) -> Tensor:
    """Round the columns of one block.

    Args:
        Wt: the weights.
        present: the weights plus the terms of the blocks before, changed to the compensated weights.
        errors: W − Ŵ, written.
        R: the part of the unit factor.
        grids: the grids of the block.

    Returns:
        The codes, as whole numbers.
    """
    codes, most, factors = torch.empty_like(Wt), 2**grids.bits - 1, R.T.contiguous()
    rows = (part.expand_as(Wt).unbind() for part in (grids.inverse, grids.zero, grids.scale))
    for q, (w, inverse, zero, scale) in enumerate(zip(present.unbind(), *rows, strict=True)):
        if q:
            w.addmv_(errors[:q].T, factors[q, :q])
        code = torch.mul(w, inverse, out=codes[q]).add_(zero).round_().clamp_(0, most)
        torch.addcmul(Wt[q], code - zero, scale, value=-1, out=errors[q])
    return codes
