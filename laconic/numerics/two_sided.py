"""Rounding for ½ tr(F E H E^T), F and H full or diagonal: feedback wherever there are correlations."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.numerics.gptq import Order, Rounded, Values, gptq, swept
from laconic.numerics.grid import Grid, Spacing, codes_of, fit_grid
from laconic.numerics.ldlq import ldlq, unit_factor
from laconic.numerics.psd import InputMoment, OutputMoment


@dataclass(frozen=True)
class Side:
    """One of the two moments, taken apart: S = R D R^T in the order of its diagonal, R with ones on its diagonal."""

    order: Order
    R: Float[Tensor, "n n"]

    @classmethod
    def of(cls, S: Float[Tensor, "n n"]) -> "Side":
        """S taken apart."""
        order = Order.of(S)
        return cls(order, unit_factor(S[order.columns][:, order.columns]))


@dataclass(frozen=True)
class TwoSided:
    """The sides along which errors can be made up for: rows are those of F, columns those of H."""

    rows: Side | None
    columns: Side | None

    @classmethod
    def of(cls, F: OutputMoment, H: InputMoment) -> "TwoSided":
        """Of positive definite moments; a diagonal one makes no side."""
        return cls(Side.of(F) if F.ndim == 2 else None, Side.of(H) if H.ndim == 2 else None)

    def round(
        self, W: Float[Tensor, "out in"], spacing: Spacing, mask: Bool[Tensor, "out in"] | None = None
    ) -> Rounded:
        """Every weight rounded, to 0 where `mask` is False."""
        if self.columns is not None and self.rows is None:
            return gptq(W, self.columns.order, spacing, mask)
        grid = fit_grid(W, spacing, self._importance(W), mask)
        if self.rows is None:
            return Rounded(codes_of(W, grid), grid)
        return Rounded(self._codes(W, grid, mask, self.rows), grid)

    def _importance(self, W: Float[Tensor, "out in"]) -> Float[Tensor, "out in"] | None:
        if self.rows is None and self.columns is None:
            return None
        rows = W.new_ones(len(W)) if self.rows is None else self.rows.order.importance
        columns = W.new_ones(W.shape[1]) if self.columns is None else self.columns.order.importance
        return torch.outer(rows / rows.max(), columns / columns.max()).float()

    def _codes(self, W: Float[Tensor, "out in"], grid: Grid, mask: Bool[Tensor, "out in"] | None, rows: Side) -> Tensor:
        first = rows.order.columns
        if self.columns is None:
            every = torch.arange(W.shape[1], device=W.device)
            values = Values.of(grid, every, mask).expanded(len(W)).at(first)
            return swept(W.double()[first], rows.order.U, values)[rows.order.back]
        order = self.columns.order
        values = Values.of(grid, order.columns, mask).at(first)
        codes = ldlq(W.double()[first][:, order.columns], values, rows.R, self.columns.R)
        return codes[rows.order.back][:, order.back]
