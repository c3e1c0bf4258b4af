"""A matrix of packed codes with what decodes them, from which kernels are made."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from laconic.numerics.grid import Grid, dequantize
from laconic.numerics.packing import unpack
from laconic.numerics.scaled_rows import can_scale_packed, scale_packed_rows
from laconic.system import keep_freed_memory

TILE = 2**18
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
        keep_freed_memory()
        rows, width = self.shape
        # The codes of eight rows fill whole bytes.
        tile = TILE // width // 8 * 8
        if dtype is torch.float32 or not 0 < tile < rows:
            return next(self._tiles(rows)).to(dtype)
        matrix = self.codes.new_empty(rows, width, dtype=dtype)
        # The fp32 values of few rows stay in the cache until they are cast.
        for part, values in zip(matrix.split(tile), self._tiles(tile), strict=True):
            part.copy_(values)
        return matrix

    def _tiles(self, tile: int) -> Iterator[Float[Tensor, "rows in"]]:
        """The matrix in fp32, in parts of `tile` rows, which is a multiple of eight or all rows."""
        (rows, width), grid = self.shape, self.grid
        group = grid.group or width
        if width % group == 0 and can_scale_packed(self.codes, grid.bits, group):
            scale, zero = (numbers.expand(rows, -1).reshape(-1) for numbers in grid[:2])
            for values in scale_packed_rows(self.codes, grid.bits, scale, zero, tile * width // group):
                yield self._scale_columns(values.view(-1, width))
            return
        for start in range(0, max(rows, 1), tile or 1):
            stop = min(start + tile, rows)
            stream = self.codes[start * width * grid.bits // 8 : -(-stop * width * grid.bits // 8)]
            codes = unpack(stream, grid.bits, (stop - start) * width).view(-1, width)
            scale, zero = (numbers if len(numbers) == 1 else numbers[start:stop] for numbers in grid[:2])
            yield self._scale_columns(dequantize(codes, grid._replace(scale=scale, zero=zero)))

    def _scale_columns(self, values: Float[Tensor, "rows in"]) -> Float[Tensor, "rows in"]:
        return values if self.column_scales is None else values.mul_(self.column_scales)
