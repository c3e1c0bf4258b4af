"""A matrix of packed codes with what decodes them, from which kernels are made."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from laconic.numerics.grid import Grid, dequantize
from laconic.numerics.packing import unpack
from laconic.numerics.scaled_rows import scale_rows

TILE = 2**19
"""Weights that are decoded to fp32 at a time, where another dtype is asked for."""


class CodeMatrix(NamedTuple):
    """Packed codes, with the grid and the scales that decode them.

    Args:
        codes: packed codes, as `laconic.numerics.packing.pack` returns them.
        grid: scales and zero points.
        shape: (out, in).
        column_scales: factor of each column; None for none.

    Example:
        >>> from laconic.numerics.packing import pack
        >>> grid = Grid(torch.tensor([[0.5]]), torch.tensor([[1.0]]), bits=4, group=2)
        >>> CodeMatrix(pack(torch.tensor([0, 3]), 4), grid, (1, 2), None).dense(torch.float32)
        tensor([[-0.5000,  1.0000]])
    """

    codes: UInt8[Tensor, " bytes"]
    grid: Grid
    shape: tuple[int, int]
    column_scales: Float[Tensor, " in"] | None

    @property
    def unpacked_codes(self) -> UInt8[Tensor, "out in"]:
        """One byte for each code."""
        return unpack(self.codes, self.grid.bits, self.shape[0] * self.shape[1]).view(self.shape)

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense matrix, computed in fp32 and cast to `dtype`."""
        rows, width = self.shape
        group = self.grid.group or width
        # The codes of eight rows fill whole bytes.
        tile = TILE // width // 8 * 8
        if dtype is torch.float32 or not 0 < tile < rows or width % group:
            return self._scale_columns(dequantize(self.unpacked_codes, self.grid)).to(dtype)
        scale, zero = (numbers.expand(rows, -1).reshape(-1) for numbers in self.grid[:2])
        shift, groups = -scale * zero, width // group
        matrix = scale.new_empty(rows, width, dtype=dtype)
        # The fp32 values of few rows stay in the cache until they are cast.
        for start in range(0, rows, tile):
            stop = min(start + tile, rows)
            stream = self.codes[start * width * self.grid.bits // 8 : -(-stop * width * self.grid.bits // 8)]
            codes = unpack(stream, self.grid.bits, (stop - start) * width).view(-1, group)
            here = slice(start * groups, stop * groups)
            matrix[start:stop] = self._scale_columns(scale_rows(codes, scale[here], shift[here]).view(-1, width))
        return matrix

    def _scale_columns(self, values: Float[Tensor, "rows in"]) -> Float[Tensor, "rows in"]:
        return values if self.column_scales is None else values.mul_(self.column_scales)
