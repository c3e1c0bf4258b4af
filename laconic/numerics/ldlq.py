"""Rounding with compensation along rows and columns, for a curvature F ⊗ H that couples both.

A. Tseng, Z. Sun, C. De Sa, "Model-Preserving Adaptive Rounding" (YAQA), ICML 2026, arXiv 2505.22988. With
F = R_O D_O R_O^T and H = R_I D_I R_I^T, both R upper triangular with ones on the diagonal, and E = W − Ŵ,

    ½ tr(F E H E^T) = ½ Σ_ij [D_O]_ii [D_I]_jj Z_ij²,    Z = R_O^T E R_I = E + (terms of E above and to the left),

so every weight is rounded to the value nearest to W plus those terms, from the top left on. With F = I it is GPTQ. The
paper starts at the bottom right, with lower triangles.

Weights on one anti-diagonal do not depend on each other. The matrix is cut into tiles. All tiles on one
anti-diagonal are processed together, one of their inner anti-diagonals at a time. The feedback between tiles is
computed by matrix products: within a panel of several tiles for all tiles of an anti-diagonal at once, and, when a tile
is the last one of a panel, from the whole panel to all tiles beyond it.

Notation: W (m, n); Y = E R_I. Tiles are stored *askew*, (2t − 1, t, tiles): [s, i] is row i, column s − i. Feedback
along a column is stored by columns, [s, j] being row s − j, column j.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from laconic.numerics.column_sweep import ColumnSweep, WeightGrids
from laconic.numerics.gptq import ColumnOrder, gptq
from laconic.numerics.grid import Grid, QuantizedWeight
from laconic.numerics.moments import InputMoment, OutputMoment
from laconic.numerics.quantizer import QuantizerSpec, affine_grid, fit_quantizer, nearest, with_codes
from laconic.numerics.rounding import round_steps_, step_codes

TILE = 16
"""Rows and columns of a tile."""
PANEL = 8
"""Tiles of a panel."""


def ldlq(
    W: Float[Tensor, "out in"],
    values: WeightGrids,
    R_O: Float[Tensor, "out out"],
    R_I: Float[Tensor, "in in"],
    uneven: bool = False,
) -> UInt8[Tensor, "out in"]:
    """The codes of one sweep from the top left to the bottom right.

    Args:
        W: the matrix; its dtype is that of the computation.
        values: the grid of each weight.
        R_O: unit factor of F.
        R_I: unit factor of H.
        uneven: whether the steps are the uneven ones of `iq4_nl`.

    Example:
        With F = H = I every weight is rounded to the nearest value.

        >>> grid = Grid(torch.ones(1, 1), torch.zeros(1, 1), bits=2, group=2)
        >>> values = WeightGrids.from_grid(grid, torch.arange(2), mask=None)
        >>> ldlq(torch.tensor([[0.9, 2.2]]).double(), values, torch.eye(1).double(), torch.eye(2).double())
        tensor([[1, 2]], dtype=torch.uint8)
    """
    m, n = W.shape
    size = PANEL * TILE
    low, right = -m % size, -n % size
    left, above = _Side.of(pad(R_I.to(W.dtype), (0, right, 0, right))), _Side.of(pad(R_O.to(W.dtype), (0, low, 0, low)))
    # The padding of the last tiles is zero and has a scale of 0, so it has no error to pass on.
    parts = (W, values.scale, values.inverse, values.zero)
    inputs = [pad(part.to(W.dtype).expand(m, n), (0, right, 0, low)) for part in parts]
    E, Y, from_left, from_above, codes = (torch.zeros_like(inputs[0]) for _ in range(5))
    rows, columns = -(-m // TILE), -(-n // TILE)
    for diagonal in range(rows + columns - 1):
        i = torch.arange(max(0, diagonal - columns + 1), min(diagonal, rows - 1) + 1, device=W.device)
        j = diagonal - i
        # Errors that are not known yet are zero.
        beside = _tiles(from_left)[i, :, j] + _by_rows(E)[i, :, j // PANEL] @ left.in_panel[j]
        over = _tiles(from_above)[i, :, j].mT + _by_columns(Y)[i // PANEL, :, j].mT @ above.in_panel[i]
        # Padded, because the last steps also add feedback beyond the tile.
        feedback = [pad(_to_askew(part), (0, 0, 0, 0, 0, TILE - 1)) for part in (beside, over)]
        askew = torch.stack([_to_askew(_tiles(part)[i, :, j]) for part in inputs])
        results = _from_askew(
            _round_tiles(askew, feedback, (left.reach[..., j], above.reach[..., i]), (values.bits, uneven))
        )
        for whole, part in zip((codes, E, Y), results, strict=True):
            _tiles(whole)[i, :, j] = part
        _pass_on(left.R, E, from_left, diagonal, (rows, columns))
        _pass_on(above.R, Y.T, from_above.T, diagonal, (columns, rows))
    return step_codes(codes[:m, :n], uneven)


class _Side(NamedTuple):
    """The unit factor of one side, in the forms in which tiles read it.

    Args:
        R: the factor.
        in_panel: for each block of TILE columns, the rows of its panel.
        reach: the factors within a tile, see `_reach`.
    """

    R: Float[Tensor, "n n"]
    in_panel: Float[Tensor, "tiles panel t"]
    reach: Float[Tensor, "steps reach t tiles"]

    @classmethod
    def of(cls, R: Float[Tensor, "n n"]) -> "_Side":
        size = PANEL * TILE
        blocks = [R[k - k % size :][:size, k : k + TILE] for k in range(0, len(R), TILE)]
        return cls(R, torch.stack(blocks), _reach(R))


def _pass_on(R: Tensor, errors: Tensor, feedback: Tensor, diagonal: int, count: tuple[int, int]) -> None:
    """Add the terms of panels whose last tile lies on an anti-diagonal to all columns beyond the panel.

    Args:
        R: the factor of the columns.
        errors: E; the same function serves the rows with Y^T.
        feedback: changed in place.
        diagonal: the number of the anti-diagonal.
        count: number of tiles in a column, and in a row.
    """
    rows, columns = count
    for last in range(PANEL - 1, columns, PANEL):
        if 0 <= (tile := diagonal - last) < rows:
            row, panel = slice(tile * TILE, (tile + 1) * TILE), slice((last + 1 - PANEL) * TILE, (last + 1) * TILE)
            feedback[row, panel.stop :].addmm_(errors[row, panel], R[panel, panel.stop :])


def _tiles(X: Float[Tensor, "height width"]) -> Float[Tensor, "rows t columns t"]:
    """A view; [i, :, j] is the tile in row i and column j of tiles."""
    return X.view(X.shape[0] // TILE, TILE, -1, TILE)


def _by_rows(X: Float[Tensor, "height width"]) -> Float[Tensor, "rows t panels inside"]:
    """A view; [i, :, p] is panel p of row i of tiles."""
    return X.view(X.shape[0] // TILE, TILE, -1, PANEL * TILE)


def _by_columns(X: Float[Tensor, "height width"]) -> Float[Tensor, "panels inside columns t"]:
    """A view; [p, :, j] is panel p of column j of tiles."""
    return X.view(X.shape[0] // (PANEL * TILE), PANEL * TILE, -1, TILE)


def _round_tiles(
    inputs: Float[Tensor, "4 steps t tiles"],
    feedback: list[Tensor],
    reach: tuple[Tensor, Tensor],
    kind: tuple[int, bool],
) -> Float[Tensor, "3 steps t tiles"]:
    """Round tiles that do not depend on each other, anti-diagonal by anti-diagonal.

    Args:
        inputs: weights, scales, inverse scales and zero points, askew.
        feedback: the terms from the left and from above, added to in place.
        reach: the factors by which an error is passed along the row and down the column.
        kind: bits of a code, and whether the steps are uneven.

    Returns:
        Steps, which are the codes unless they are uneven, E and Y, askew.
    """
    W, scale, inverse, zero = inputs
    left, above = feedback
    along, down = reach
    results = torch.zeros_like(inputs[:3])
    for s in range(2 * TILE - 1):
        # The rows of this anti-diagonal; its columns are the same numbers in reverse order.
        diagonal = slice(max(0, s - TILE + 1), min(s, TILE - 1) + 1)
        from_left = left[s, diagonal]
        w = W[s, diagonal] + from_left + above[s, diagonal].flip(0)
        codes = round_steps_((w * inverse[s, diagonal]).add_(zero[s, diagonal]), *kind)
        e = W[s, diagonal] - (codes - zero[s, diagonal]).mul_(scale[s, diagonal])
        y = e + from_left
        results[0, s, diagonal], results[1, s, diagonal], results[2, s, diagonal] = codes, e, y
        left[s + 1 : s + TILE, diagonal].addcmul_(along[s, :, diagonal], e[None])
        above[s + 1 : s + TILE, diagonal].addcmul_(down[s, :, diagonal], y.flip(0)[None])
    return results


def _to_askew(X: Float[Tensor, "*some tiles t t"]) -> Float[Tensor, "*some steps t tiles"]:
    """[…, s, i, :] = X[…, :, i, s − i], 0 where there is none."""
    # With rows one shorter than their stride, each row is shifted right by one more.
    wide = pad(X, (0, TILE)).flatten(-2)[..., : TILE * (2 * TILE - 1)]
    return wide.unflatten(-1, (TILE, -1)).transpose(-1, -3).contiguous()


def _from_askew(X: Float[Tensor, "some steps t tiles"]) -> Float[Tensor, "some tiles t t"]:
    """The inverse of `_to_askew`."""
    i = torch.arange(TILE, device=X.device)
    return X[:, i[:, None] + i, i[:, None]].permute(0, 3, 1, 2)


def _reach(R: Float[Tensor, "size size"]) -> Float[Tensor, "steps reach t blocks"]:
    """For every block T on the diagonal, [s, d − 1, i] = T[j, j + d] with j = s − i: the factor at a distance d."""
    blocks = torch.stack([R[k : k + TILE, k : k + TILE] for k in range(0, len(R), TILE)])
    ahead = torch.stack([pad(blocks.diagonal(d, 1, 2), (0, d)) for d in range(1, TILE)])
    s, i = (torch.arange(size, device=R.device) for size in (2 * TILE - 1, TILE))
    j = s[:, None] - i
    reached = ahead[:, :, j.clamp(0, TILE - 1)] * ((j >= 0) & (j < TILE))
    return reached.permute(2, 0, 3, 1).contiguous()


@dataclass(frozen=True)
class TwoSidedRounding:
    """Rounding for ½ tr(F E H E^T), with compensation along every side whose moment is not diagonal.

    Args:
        rows: the order of the rows, with the factors of F; None if F is diagonal.
        columns: the order of the columns, with the factors of H; None if H is diagonal.

    Example:
        >>> from laconic.numerics.grid import GridSpec
        >>> rounding = TwoSidedRounding.from_moments(torch.eye(1).double(), torch.eye(4).double())
        >>> rounding.round(torch.tensor([[0.0, 1.1, 1.9, 3.0]]), GridSpec(bits=2, group=4, clip=False)).codes
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    """

    rows: ColumnOrder | None
    columns: ColumnOrder | None

    @classmethod
    def from_moments(cls, F: OutputMoment, H: InputMoment) -> "TwoSidedRounding":
        """The rounding for two positive definite moments."""
        return cls(*(ColumnOrder.from_hessian(S, exact=True) if S.ndim == 2 else None for S in (F, H)))

    def round(
        self, W: Float[Tensor, "out in"], spec: QuantizerSpec, mask: Bool[Tensor, "out in"] | None = None
    ) -> QuantizedWeight:
        """Quantize a matrix.

        Args:
            W: the matrix.
            spec: bits, group and kind of the grids, or the type of llama.cpp's blocks.
            mask: False at weights that are to be zero; None to prune none.
        """
        if self.columns is not None and self.rows is None:
            return gptq(W, self.columns, spec, mask)
        if self.rows is None:
            return nearest(W, spec, self._importance(W), mask)
        quantizer = fit_quantizer(W, spec, self._importance(W), mask)
        return with_codes(self._codes(W, affine_grid(quantizer), mask, self.rows), quantizer)

    def _importance(self, W: Float[Tensor, "out in"]) -> Float[Tensor, "out in"] | None:
        if self.rows is None and self.columns is None:
            return None
        rows = W.new_ones(len(W)) if self.rows is None else self.rows.importance
        columns = W.new_ones(W.shape[1]) if self.columns is None else self.columns.importance
        return torch.outer(rows / rows.max(), columns / columns.max()).float()

    def _codes(
        self, W: Float[Tensor, "out in"], grid: Grid, mask: Bool[Tensor, "out in"] | None, rows: ColumnOrder
    ) -> Tensor:
        if self.columns is None:
            left_to_right = torch.arange(W.shape[1], device=W.device)
            values = WeightGrids.from_grid(grid, left_to_right, mask).expand_rows(len(W)).take_rows(rows.columns)
            sweep = ColumnSweep(W.float()[rows.columns], rows.R)
            return sweep.round(slice(0, len(W)), values.rows, grid.bits, grid.uneven)[rows.inverse]
        order = self.columns
        values = WeightGrids.from_grid(grid, order.columns, mask).take_rows(rows.columns)
        codes = ldlq(W.float()[rows.columns][:, order.columns], values, rows.R.dense(), order.R.dense(), grid.uneven)
        return codes[rows.inverse][:, order.inverse]
