"""Rounding column by column; the columns that are rounded later compensate for each error.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv 2210.17323, equations 2 and 3, algorithm 1. With H^{-1} = U^T U, U upper triangular,
column q is rounded to its grid, and (w_q − ŵ_q) / U_qq times row q of U is subtracted from the columns to the right.
Here the same weights are computed without an inverse, from H = R D R^T (`laconic.numerics.column_sweep`): D_q is
1 / U_qq².

The loss of a row is ½ Σ_q D_q (w_q − ŵ_q)², where w_q is the weight at the moment it is rounded. Compensation has
increased the range of the weights by then, so grids fitted to the original matrix clip too much. Therefore the grids
are fitted a second time, to the compensated weights of the first sweep, with D_q as the importance of column q. The
sweep is repeated, and every row keeps the sweep with the lower loss.

A pruned weight has zero as its only value. If it is not zero when its column is rounded, later columns compensate for
the difference, so one sweep prunes and rounds (E. Frantar, D. Alistarh, "SparseGPT", ICML 2023, section 3.5).

Notation: W (m, n); H (n, n), positive definite. Inside a sweep everything is transposed, (n, m), so that a column is
contiguous, and in the order of the sweep.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from laconic.numerics.column_sweep import ColumnSweep, coarsen, columns_of
from laconic.numerics.factors import SINGLE_FROM, UnitFactor
from laconic.numerics.grid import GridSpec, QuantizedWeight
from laconic.numerics.quantizer import (
    Quantizer,
    QuantizerSpec,
    affine_grid,
    choose_rows,
    columns_together,
    fit_quantizer,
    join,
    with_codes,
)
from laconic.numerics.triangle import Triangle

SWEEPS = 2
"""Number of sweeps where ranges are searched for; the first uses grids fitted to the original matrix."""
FIT_ROWS = 512
"""Rows that are transposed at once to fit grids to them."""


class ColumnOrder(NamedTuple):
    """The order in which columns are rounded, and the factors of the reordered H = R D R^T.

    Args:
        columns: numbers of the columns in this order.
        R: upper triangular, with ones on the diagonal; most of it in bfloat16, if sweeps may use it.
        D: the cost of an error of each column after later columns have compensated for it: 1 / U_qq².
        inverse_diagonal: [H^{-1}]_qq of the reordered H; an estimate for many columns.
        by_activity: True for the order of diag H, largest first ("act-order"): the most important columns are rounded
            while most others can still compensate. False for the order from left to right.

    Example:
        >>> ColumnOrder.from_hessian(torch.diag(torch.tensor([1.0, 4.0]))).columns
        tensor([1, 0])
    """

    columns: Integer[Tensor, " in"]
    R: Triangle
    D: Float[Tensor, " in"]
    inverse_diagonal: Float[Tensor, " in"]
    by_activity: bool

    @classmethod
    def from_hessian(
        cls, H: Float[Tensor, "in in"], by_activity: bool = True, damping: float = 0.0, *, exact: bool = False
    ) -> "ColumnOrder":
        """The order for a positive definite H.

        Args:
            H: the matrix.
            by_activity: whether to order by diag H.
            damping: added to the diagonal, as a fraction of its mean. If all of H is zero, the identity is taken.
            exact: whether R is to be left in the dtype in which it was computed.
        """
        diagonal = H.diagonal()
        level = diagonal.double().mean().item()
        if damping and level <= 0:
            identity = torch.eye(len(H), dtype=torch.float64, device=H.device)
            return cls.from_hessian(identity, by_activity, exact=exact)
        left_to_right = torch.arange(len(H), device=H.device)
        columns = diagonal.argsort(descending=True, stable=True) if by_activity else left_to_right
        factor = UnitFactor.from_moment(H, columns, damping * level)
        # The importance of columns needs few digits.
        many = len(H) >= SINGLE_FROM
        inverse_diagonal = factor.estimate_inverse_diagonal() if many else factor.inverse_diagonal()
        R = factor.R if exact else coarsen(factor.R, factor.D)
        return cls(columns, R, factor.D, inverse_diagonal, by_activity)

    @property
    def inverse(self) -> Integer[Tensor, " in"]:
        """The position of every column in the order."""
        return self.columns.argsort()

    @property
    def importance(self) -> Float[Tensor, " in"]:
        """1 / [H^{-1}]_jj of every column: the cost of its error after all other columns have compensated."""
        return (1 / self.inverse_diagonal)[self.inverse]

    @property
    def remaining_importance(self) -> Float[Tensor, " in"]:
        """1 / U_jj² of every column: the cost of its error after later columns have compensated."""
        return self.D[self.inverse]


def gptq(
    W: Float[Tensor, "out in"],
    order: ColumnOrder,
    spec: QuantizerSpec,
    mask: Bool[Tensor, "out in"] | None = None,
) -> QuantizedWeight:
    """Quantize a matrix with compensation along its rows.

    Ordered by activity, all grids are fitted before the sweep and, where ranges are searched for, again after it. From
    left to right, the grid of a group is fitted when the sweep reaches it.

    Args:
        W: the matrix.
        order: the order of the columns, with the curvature.
        spec: bits, group and kind of the grids, or the type of llama.cpp's blocks.
        mask: False at weights that are to be zero; None to prune none.

    Example:
        >>> order = ColumnOrder.from_hessian(torch.eye(4, dtype=torch.float64))
        >>> gptq(torch.tensor([[0.0, 1.1, 1.9, 3.0]]), order, GridSpec(bits=2, group=4, clip=False)).codes
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    """
    sweep = ColumnSweep(W.T.index_select(0, order.columns).float(), order.R)
    together = columns_together(spec)
    if not order.by_activity and together is not None:
        return _from_left_to_right(sweep, order, spec, mask)
    best = _round_all(sweep, order, fit_quantizer(W, spec, order.importance, mask), mask)
    searched = not isinstance(spec, GridSpec) or spec.clip
    for _ in range(SWEEPS - 1 if searched else 0):
        again = _fit_to_compensated(sweep, order, spec, mask)
        best = best.take_better(_round_all(sweep, order, again, mask))
    return with_codes(best.codes.T[:, order.inverse].contiguous(), best.quantizer)


class _Rounded(NamedTuple):
    """Codes in the order of the sweep, what they refer to, and the loss of each row."""

    codes: UInt8[Tensor, "in out"]
    quantizer: Quantizer
    losses: Float[Tensor, " out"]

    def take_better(self, other: "_Rounded") -> "_Rounded":
        """Take the sweep with the lower loss, for each row, or for the whole matrix where all rows share a grid."""
        if affine_grid(self.quantizer).group is None:
            return other if other.losses.sum() < self.losses.sum() else self
        lower = other.losses < self.losses
        quantizer = choose_rows(lower, other.quantizer, self.quantizer)
        codes = torch.where(lower, other.codes, self.codes)
        return _Rounded(codes, quantizer, torch.minimum(self.losses, other.losses))


def _fit_to_compensated(
    sweep: ColumnSweep, order: ColumnOrder, spec: QuantizerSpec, mask: Bool[Tensor, "out in"] | None
) -> Quantizer:
    """Grids for the weights at the moment they were rounded, fitted to some rows after another."""
    inverse, importance, m = order.inverse, order.remaining_importance, sweep.Wt.shape[1]
    height = m if columns_together(spec) is None else FIT_ROWS
    parts = []
    for rows in (slice(start, start + height) for start in range(0, m, height)):
        met = sweep.compensated[:, rows].index_select(0, inverse).T.contiguous()
        parts.append(fit_quantizer(met, spec, importance, None if mask is None else mask[rows]))
    return join(parts, axis=0)


def _round_all(
    sweep: ColumnSweep, order: ColumnOrder, quantizer: Quantizer, mask: Bool[Tensor, "out in"] | None
) -> _Rounded:
    """One sweep through the whole matrix, and the loss of each of its rows."""
    grid = affine_grid(quantizer)
    codes = sweep.round(slice(0, len(sweep.Wt)), columns_of(grid, order.columns, mask), grid.bits, grid.uneven)
    return _Rounded(codes, quantizer, sweep.losses(order.D))


def _from_left_to_right(
    sweep: ColumnSweep, order: ColumnOrder, spec: QuantizerSpec, mask: Bool[Tensor, "out in"] | None
) -> QuantizedWeight:
    """Sweep group by group; each grid is fitted to the weights after compensation for earlier groups."""
    together = columns_together(spec)
    assert together is not None
    codes, quantizers = list[Tensor](), list[Quantizer]()
    for start in range(0, len(sweep.Wt), together):
        columns = slice(start, min(start + together, len(sweep.Wt)))
        kept = None if mask is None else mask[:, columns]
        part = fit_quantizer(sweep.arriving(columns).T, spec, order.importance[columns], kept)
        grid = affine_grid(part)
        values = columns_of(grid, order.columns[: columns.stop - start], kept)
        codes.append(sweep.round(columns, values, spec.bits, grid.uneven))
        quantizers.append(part)
    return with_codes(torch.cat(codes).T.contiguous(), join(quantizers, axis=1))
