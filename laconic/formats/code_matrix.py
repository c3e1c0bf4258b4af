"""A matrix of packed codes with what decodes them, from which kernels are made."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from laconic.numerics.grid import Grid, dequantize
from laconic.numerics.packing import unpack
from laconic.numerics.scaled_rows import PackedRows, can_scale_packed
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
        return Decoder(self).dense(dtype)


class Decoder:
    """Decodes a matrix, as often as it is asked to. Between two times it keeps 8 bytes for each group.

    Args:
        matrix: the matrix.

    Example:
        >>> from laconic.numerics.packing import pack
        >>> grid = Grid(torch.tensor([[0.5]]), torch.tensor([[1.0]]), bits=4, group=2)
        >>> decoder = Decoder(CodeMatrix(pack(torch.tensor([0, 3]), 4), grid, (1, 2), None))
        >>> decoder.dense(torch.float32), decoder.nbytes
        (tensor([[-0.5000,  1.0000]]), 8)
    """

    def __init__(self, matrix: CodeMatrix) -> None:
        self._codes, grid, self._shape, self._columns = matrix
        rows, width = matrix.shape
        group = grid.group or width
        self._grid: Grid | PackedRows = grid
        if width % group == 0 and can_scale_packed(matrix.codes, grid.bits, group):
            scale, zero = (numbers.expand(rows, -1).reshape(-1) for numbers in grid[:2])
            self._grid = PackedRows.of(matrix.codes, grid.bits, scale, zero)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept in addition to the codes."""
        grid = self._grid
        other = grid.numbers if isinstance(grid, PackedRows) else grid.zero
        return grid.scale.nbytes + other.nbytes + (0 if self._columns is None else self._columns.nbytes)

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense matrix, computed in fp32 and cast to `dtype`."""
        keep_freed_memory()
        rows, width = self._shape
        # The codes of eight rows fill whole bytes.
        tile = TILE // width // 8 * 8
        if dtype is torch.float32 or not 0 < tile < rows:
            return self._values(0, rows).to(dtype)
        dense = self._codes.new_empty(rows, width, dtype=dtype)
        for start in range(0, rows, tile):
            stop = min(start + tile, rows)
            # The fp32 values of few rows stay in the cache until they are cast. They are freed before the next ones are
            # computed, which get their memory.
            dense[start:stop].copy_(self._values(start, stop))
        return dense

    def _values(self, start: int, stop: int) -> Float[Tensor, "some in"]:
        """Some rows of the matrix in fp32; `start` is a multiple of eight."""
        grid, (rows, width) = self._grid, self._shape
        if isinstance(grid, PackedRows):
            groups = len(grid.scale) // max(rows, 1)
            values = grid.scaled(start * groups, stop * groups).view(-1, width)
        else:
            stream = self._codes[start * width * grid.bits // 8 : -(-stop * width * grid.bits // 8)]
            codes = unpack(stream, grid.bits, (stop - start) * width).view(-1, width)
            scale, zero = (numbers if len(numbers) == 1 else numbers[start:stop] for numbers in grid[:2])
            values = dequantize(codes, grid._replace(scale=scale, zero=zero))
        return values if self._columns is None else values.mul_(self._columns)
