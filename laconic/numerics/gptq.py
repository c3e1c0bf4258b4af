"""Rounding column by column: the error that each leaves is made up for by those that are rounded after it.

Paper: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023, arXiv 2210.17323, equations 2 and 3, algorithm 1. With H^{-1} = U^T U, U upper
triangular, the column q is rounded to its grid, and (w_q − ŵ_q) / U_qq times the row q of U is taken from the columns
to the right of it.

What a row loses is ½ Σ_q ((w_q − ŵ_q) / U_qq)², w_q as the sweep meets it: with what earlier columns left for it, so
weights spread wider than they were, and ranges that are fitted to the matrix itself cut too much of that off. So the
grids are fitted anew to what one sweep has met, an error in column q counting 1 / U_qq², and the sweep is done again;
every row keeps the sweep in which it lost less.

A weight that is to be zero has zero as its only value: where it was not zero, or earlier columns left something for it,
that goes on to those after it. So one sweep prunes and rounds (E. Frantar, D. Alistarh, "SparseGPT", ICML 2023,
section 3.5).

Notation: W (m, n); H (n, n), positive definite; everything of the sweep transposed, (n, m), so that a column lies in
one piece of memory, and in the order of the sweep.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from laconic.numerics.grid import Grid, Spacing, fit_grid
from laconic.numerics.obs import BLOCK, inverse_factor

SWEEPS = 2
"""Number of sweeps where ranges are searched for; the first uses grids fitted to the original matrix."""


class Order(NamedTuple):
    """In which order the columns are rounded; U is that of H reordered.

    by_activity: the largest diagonal of H comes first ("act-order"), so that what counts most is rounded while most can
                 still make up for it; otherwise from left to right.
    """

    columns: Integer[Tensor, " in"]
    U: Float[Tensor, "in in"]
    by_activity: bool

    @classmethod
    def of(cls, H: Float[Tensor, "in in"], by_activity: bool = True) -> "Order":
        """The order for H."""
        every = torch.arange(len(H), device=H.device)
        columns = H.diagonal().argsort(descending=True, stable=True) if by_activity else every
        return cls(columns, inverse_factor(H[columns][:, columns]), by_activity)

    @property
    def back(self) -> Integer[Tensor, " in"]:
        """Where every column of the matrix is in the order."""
        return self.columns.argsort()

    @property
    def importance(self) -> Float[Tensor, " in"]:
        """1 / [H^{-1}]_jj of every column of the matrix: what its error costs once all others have made up for it."""
        return (1 / self.U.square().sum(0))[self.back]

    @property
    def remaining(self) -> Float[Tensor, " in"]:
        """1 / U_jj² of every column of the matrix: the cost of its error after later columns compensate for it."""
        return (1 / self.U.diagonal().square())[self.back]


class Rounded(NamedTuple):
    """The code of every weight, and the grids."""

    codes: UInt8[Tensor, "out in"]
    grid: Grid


class Values(NamedTuple):
    """What each weight may become: s (c − z), c below 2^bits. Where s is 0, which is where a weight is to be, 0 alone.

    inverse: 1 / s, or 0.
    """

    scale: Float[Tensor, "#out #in"]
    inverse: Float[Tensor, "#out #in"]
    zero: Float[Tensor, "#out #in"]
    bits: int

    @classmethod
    def of(cls, grid: Grid, columns: Integer[Tensor, " in"], mask: Bool[Tensor, "out in"] | None) -> "Values":
        """For these columns; 0 where `mask`, in the order of the matrix, is False."""
        scale, zero = (part.double() for part in grid.columns(columns))
        if mask is not None:
            scale = scale * mask[:, columns]
        return cls(scale, torch.where(scale == 0, 0, 1 / scale), zero, grid.bits)

    @property
    def T(self) -> "Values":
        """Of the transposed matrix, in one piece of memory by rows."""
        return self._each(lambda part: part.T.contiguous())

    def at(self, rows: Integer[Tensor, " some"] | slice) -> "Values":
        """Of some rows of the matrix."""
        return self._each(lambda part: part[rows] if len(part) > 1 else part)

    def expanded(self, rows: int) -> "Values":
        """With a row of its own for each row of the matrix, where all rows have the same."""
        return self._each(lambda part: part.expand(rows, -1))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Values":
        return Values(change(self.scale), change(self.inverse), change(self.zero), self.bits)


def gptq(
    W: Float[Tensor, "out in"],
    order: Order,
    spacing: Spacing,
    mask: Bool[Tensor, "out in"] | None = None,
) -> Rounded:
    """Every weight rounded.

    Ordered by activity, all grids are fitted before a sweep, and where their ranges are searched for, anew to what it
    met; otherwise that of a group to what its weights are once it is reached.

    mask: False where a weight is to be zero.
    """
    if not order.by_activity and spacing.group is not None:
        return _from_left_to_right(W, order, spacing, mask)
    grid = fit_grid(W, spacing, order.importance, mask)
    best, met = _sweep(W, order, grid, mask)
    for _ in range(SWEEPS - 1 if spacing.clip else 0):
        grid = fit_grid(met, spacing, order.remaining, mask)
        found, met = _sweep(W, order, grid, mask)
        best = best.or_better(found)
    return Rounded(best.codes.T[:, order.back].contiguous(), best.grid)


class _Swept(NamedTuple):
    """Codes in the order of the sweep, the grids, and what each row lost."""

    codes: UInt8[Tensor, "in out"]
    grid: Grid
    losses: Float[Tensor, " out"]

    def or_better(self, other: "_Swept") -> "_Swept":
        """Take the sweep with the lower loss, for each row, or for the whole matrix where all rows share a grid."""
        if self.grid.group is None:
            return other if other.losses.sum() < self.losses.sum() else self
        less = other.losses < self.losses
        scale = torch.where(less[:, None], other.grid.scale, self.grid.scale)
        zero = torch.where(less[:, None], other.grid.zero, self.grid.zero)
        codes = torch.where(less, other.codes, self.codes)
        return _Swept(codes, self.grid._replace(scale=scale, zero=zero), torch.minimum(self.losses, other.losses))


def _sweep(
    W: Float[Tensor, "out in"], order: Order, grid: Grid, mask: Bool[Tensor, "out in"] | None
) -> tuple[_Swept, Float[Tensor, "out in"]]:
    """One sweep through the whole matrix. It also returns each weight at the moment it was rounded."""
    met, values = W.double()[:, order.columns].T.contiguous(), Values.of(grid, order.columns, mask).T
    codes = swept(met, order.U, values)
    errors = (met - (codes - values.zero) * values.scale) / order.U.diagonal()[:, None]
    return _Swept(codes, grid, errors.square().sum(0)), met.T[:, order.back]


def _from_left_to_right(
    W: Float[Tensor, "out in"], order: Order, spacing: Spacing, mask: Bool[Tensor, "out in"] | None
) -> Rounded:
    """Sweep group by group; each grid is fitted to the weights after compensation for earlier groups."""
    importance = order.importance
    grid = fit_grid(W, spacing, importance, mask)
    assert spacing.group is not None
    Wt = W.double().T.contiguous()
    codes = torch.empty_like(Wt, dtype=torch.uint8)
    for group, start in enumerate(range(0, len(Wt), spacing.group)):
        here = slice(start, min(start + spacing.group, len(Wt)))
        kept = None if mask is None else mask[:, here]
        part = fit_grid(Wt[here].T, spacing, importance[here], kept)
        grid.scale[:, group], grid.zero[:, group] = part.scale[:, 0], part.zero[:, 0]
        values = Values.of(part, order.columns[: here.stop - start], kept)
        codes[here] = swept(Wt[start:], order.U[start:, start:], values.T)
    return Rounded(codes.T.contiguous(), grid)


def swept(Wt: Float[Tensor, "in out"], U: Float[Tensor, "in in"], values: Values) -> UInt8[Tensor, "rounded out"]:
    """The codes of the first rows of Wt, as many as `values` is for; those after them take their errors, in place.

    What is left in the rounded rows is what they were when they were met.
    """
    count = len(values.scale)
    codes = torch.empty((count, Wt.shape[1]), dtype=torch.uint8, device=Wt.device)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        here = slice(start, stop)
        errors = _through(Wt[here], codes[here], U[here, here], values.at(here))
        Wt[stop:] -= U[here, stop:].T @ errors
    return codes


def _through(Wt: Tensor, codes: Tensor, U: Tensor, values: Values) -> Float[Tensor, "columns out"]:
    """One block, in place; the errors (w − ŵ) / U_qq of each of its columns."""
    errors = torch.empty_like(Wt)
    for q in range(len(Wt)):
        code = (Wt[q] * values.inverse[q]).add_(values.zero[q]).round_().clamp_(0, 2**values.bits - 1)
        codes[q] = code
        errors[q] = (Wt[q] - (code - values.zero[q]).mul_(values.scale[q])) / U[q, q]
        Wt[q + 1 :] -= U[q, q + 1 :, None] * errors[q]
    return errors
