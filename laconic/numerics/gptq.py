"""Rounding column by column; the columns that are rounded later compensate for each error.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv 2210.17323, equations 2 and 3, algorithm 1. With H^{-1} = U^T U, U upper triangular,
column q is rounded to its grid, and (w_q − ŵ_q) / U_qq times row q of U is subtracted from the columns to the right.

The loss of a row is ½ Σ_q ((w_q − ŵ_q) / U_qq)², where w_q is the weight at the moment it is rounded. Compensation has
increased the range of the weights by then, so grids fitted to the original matrix clip too much. Therefore the grids
are fitted a second time, to the compensated weights of the first sweep, with 1 / U_qq² as the importance of column q.
The sweep is repeated, and every row keeps the sweep with the lower loss.

A pruned weight has zero as its only value. If it is not zero when its column is rounded, later columns compensate for
the difference, so one sweep prunes and rounds (E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, section 3.5).

Notation: W (m, n); H (n, n), positive definite. Inside a sweep everything is transposed, (n, m), so that a column is
contiguous, and in the order of the sweep.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from laconic.numerics.grid import Grid, GridSpec, QuantizedWeight, fit_grid
from laconic.numerics.obs import BLOCK, inverse_cholesky

SWEEPS = 2
"""Number of sweeps where ranges are searched for; the first uses grids fitted to the original matrix."""


class ColumnOrder(NamedTuple):
    """The order in which columns are rounded, and the factor of the reordered H^{-1}.

    Args:
        columns: numbers of the columns in this order.
        U: upper triangular, H^{-1} = U^T U for the reordered H.
        by_activity: True for the order of diag H, largest first ("act-order"): the most important columns are rounded
            while most others can still compensate. False for the order from left to right.

    Example:
        >>> ColumnOrder.from_hessian(torch.diag(torch.tensor([1.0, 4.0]))).columns
        tensor([1, 0])
    """

    columns: Integer[Tensor, " in"]
    U: Float[Tensor, "in in"]
    by_activity: bool

    @classmethod
    def from_hessian(cls, H: Float[Tensor, "in in"], by_activity: bool = True) -> "ColumnOrder":
        """The order for a positive definite H."""
        left_to_right = torch.arange(len(H), device=H.device)
        columns = H.diagonal().argsort(descending=True, stable=True) if by_activity else left_to_right
        return cls(columns, inverse_cholesky(H[columns][:, columns]), by_activity)

    @property
    def inverse(self) -> Integer[Tensor, " in"]:
        """The position of every column in the order."""
        return self.columns.argsort()

    @property
    def importance(self) -> Float[Tensor, " in"]:
        """1 / [H^{-1}]_jj of every column: the cost of its error after all other columns have compensated."""
        return (1 / self.U.square().sum(0))[self.inverse]

    @property
    def remaining_importance(self) -> Float[Tensor, " in"]:
        """1 / U_jj² of every column: the cost of its error after later columns have compensated."""
        return (1 / self.U.diagonal().square())[self.inverse]


class WeightGrids(NamedTuple):
    """The grid of every single weight. With a scale of 0, the only value of a weight is 0.

    Args:
        scale: s of each weight.
        inverse: 1 / s, or 0.
        zero: z of each weight.
        bits: bits of a code.

    Example:
        >>> grid = Grid(torch.tensor([[2.0]]), torch.tensor([[1.0]]), bits=2, group=2)
        >>> WeightGrids.from_grid(grid, torch.arange(2), mask=torch.tensor([[True, False]])).scale
        tensor([[2., 0.]], dtype=torch.float64)
    """

    scale: Float[Tensor, "#out #in"]
    inverse: Float[Tensor, "#out #in"]
    zero: Float[Tensor, "#out #in"]
    bits: int

    @classmethod
    def from_grid(
        cls, grid: Grid, columns: Integer[Tensor, " in"], mask: Bool[Tensor, "out in"] | None
    ) -> "WeightGrids":
        """The grids of some columns.

        Args:
            grid: the grids of the matrix.
            columns: numbers of the columns.
            mask: False at weights that are to be 0, in the order of the matrix; None to prune none.
        """
        scale, zero = (part.double() for part in grid.scale_and_zero(columns))
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


def gptq(
    W: Float[Tensor, "out in"],
    order: ColumnOrder,
    spec: GridSpec,
    mask: Bool[Tensor, "out in"] | None = None,
) -> QuantizedWeight:
    """Quantize a matrix with compensation along its rows.

    Ordered by activity, all grids are fitted before the sweep and, where ranges are searched for, again after it. From
    left to right, the grid of a group is fitted when the sweep reaches it.

    Args:
        W: the matrix.
        order: the order of the columns, with the curvature.
        spec: bits, group and kind of the grids.
        mask: False at weights that are to be zero; None to prune none.

    Example:
        >>> order = ColumnOrder.from_hessian(torch.eye(4, dtype=torch.float64))
        >>> gptq(torch.tensor([[0.0, 1.1, 1.9, 3.0]]), order, GridSpec(bits=2, group=4, clip=False)).codes
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    """
    if not order.by_activity and spec.group is not None:
        return _from_left_to_right(W, order, spec, mask)
    grid = fit_grid(W, spec, order.importance, mask)
    best, compensated = _sweep(W, order, grid, mask)
    for _ in range(SWEEPS - 1 if spec.clip else 0):
        grid = fit_grid(compensated, spec, order.remaining_importance, mask)
        sweep, compensated = _sweep(W, order, grid, mask)
        best = best.take_better(sweep)
    return QuantizedWeight(best.codes.T[:, order.inverse].contiguous(), best.grid)


class _Sweep(NamedTuple):
    """Codes in the order of the sweep, the grids, and the loss of each row."""

    codes: UInt8[Tensor, "in out"]
    grid: Grid
    losses: Float[Tensor, " out"]

    def take_better(self, other: "_Sweep") -> "_Sweep":
        """Take the sweep with the lower loss, for each row, or for the whole matrix where all rows share a grid."""
        if self.grid.group is None:
            return other if other.losses.sum() < self.losses.sum() else self
        lower = other.losses < self.losses
        scale = torch.where(lower[:, None], other.grid.scale, self.grid.scale)
        zero = torch.where(lower[:, None], other.grid.zero, self.grid.zero)
        codes = torch.where(lower, other.codes, self.codes)
        return _Sweep(codes, self.grid._replace(scale=scale, zero=zero), torch.minimum(self.losses, other.losses))


def _sweep(
    W: Float[Tensor, "out in"], order: ColumnOrder, grid: Grid, mask: Bool[Tensor, "out in"] | None
) -> tuple[_Sweep, Float[Tensor, "out in"]]:
    """One sweep through the whole matrix. Also returns the compensated weights at the moment of their rounding."""
    Wt, values = W.double()[:, order.columns].T.contiguous(), WeightGrids.from_grid(grid, order.columns, mask).T
    codes = sweep_columns(Wt, order.U, values)
    errors = (Wt - (codes - values.zero) * values.scale) / order.U.diagonal()[:, None]
    return _Sweep(codes, grid, errors.square().sum(0)), Wt.T[:, order.inverse]


def _from_left_to_right(
    W: Float[Tensor, "out in"], order: ColumnOrder, spec: GridSpec, mask: Bool[Tensor, "out in"] | None
) -> QuantizedWeight:
    """Sweep group by group; each grid is fitted to the weights after compensation for earlier groups."""
    importance = order.importance
    grid = fit_grid(W, spec, importance, mask)
    assert spec.group is not None
    Wt = W.double().T.contiguous()
    codes = torch.empty_like(Wt, dtype=torch.uint8)
    for group, start in enumerate(range(0, len(Wt), spec.group)):
        columns = slice(start, min(start + spec.group, len(Wt)))
        kept = None if mask is None else mask[:, columns]
        part = fit_grid(Wt[columns].T, spec, importance[columns], kept)
        grid.scale[:, group], grid.zero[:, group] = part.scale[:, 0], part.zero[:, 0]
        values = WeightGrids.from_grid(part, order.columns[: columns.stop - start], kept)
        codes[columns] = sweep_columns(Wt[start:], order.U[start:, start:], values.T)
    return QuantizedWeight(codes.T.contiguous(), grid)


def sweep_columns(
    Wt: Float[Tensor, "in out"], U: Float[Tensor, "in in"], values: WeightGrids
) -> UInt8[Tensor, "rounded out"]:
    """Round the first rows of a transposed matrix; those after them compensate, in place.

    Args:
        Wt: the transposed matrix, in the order of the sweep. Afterwards a rounded row has its compensated weights
            from before rounding.
        U: the factor of H^{-1}.
        values: the grids of the rows to round.

    Returns:
        The codes.

    Example:
        With H = I nothing is compensated, and every weight is rounded to the nearest value.

        >>> grid = Grid(torch.ones(1, 1), torch.zeros(1, 1), bits=2, group=2)
        >>> values = WeightGrids.from_grid(grid, torch.arange(2), mask=None).T
        >>> sweep_columns(torch.tensor([[0.9], [2.2]]).double(), torch.eye(2).double(), values).tolist()
        [[1], [2]]
    """
    count = len(values.scale)
    codes = torch.empty((count, Wt.shape[1]), dtype=torch.uint8, device=Wt.device)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        block = slice(start, stop)
        errors = _round_block(Wt[block], codes[block], U[block, block], values.take_rows(block))
        Wt[stop:] -= U[block, stop:].T @ errors
    return codes


def _round_block(Wt: Tensor, codes: Tensor, U: Tensor, values: WeightGrids) -> Float[Tensor, "columns out"]:
    """One block, in place; returns the errors (w − ŵ) / U_qq of each of its columns."""
    errors = torch.empty_like(Wt)
    for q in range(len(Wt)):
        code = (Wt[q] * values.inverse[q]).add_(values.zero[q]).round_().clamp_(0, 2**values.bits - 1)
        codes[q] = code
        errors[q] = (Wt[q] - (code - values.zero[q]).mul_(values.scale[q])) / U[q, q]
        Wt[q + 1 :] -= U[q, q + 1 :, None] * errors[q]
    return errors
