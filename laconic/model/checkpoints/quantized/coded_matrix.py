"""A matrix of integer codes that another library stored, with evenly spaced values.

    ŵ = s (c − z)

with a scale s and a zero point z for each group of columns of a row. Where the groups are neighbouring columns and the
scales are exact in 16 bits, this is what `laconic.formats.Quantized` stores, and the codes are kept as they are.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import pad

from laconic.formats import DynamicInt8, PackedCodes, Quantized
from laconic.numerics.grid import Grid
from laconic.numerics.packing import unpack


@dataclass(frozen=True, kw_only=True)
class CodedMatrix:
    """A matrix (out, in) of packed codes.

    Args:
        packed: the codes of each row, the first in the lowest bits; bits at the end of a row are not used.
        shape: (out, in).
        bits: bits of a code, 2 to 8.
        scale: s of each group, in a floating-point dtype.
        zero: z of each group; None if it is 2^(bits − 1) everywhere.
        group_index: the group of each column; None for groups of equally many neighbouring columns.
        rounds_inputs: inputs are rounded to 8 bits for each token (codes of 8 bits, a scale for each row).

    Example:
        >>> packed = torch.tensor([[0x10], [0x32]], dtype=torch.uint8)
        >>> matrix = CodedMatrix(packed=packed, shape=(2, 2), bits=4, scale=torch.ones(2, 1), zero=torch.ones(2, 1))
        >>> matrix.dense().tolist(), type(matrix.to_format()).__name__
        ([[-1.0, 0.0], [1.0, 2.0]], 'Quantized')
    """

    packed: UInt8[Tensor, "out bytes"]
    shape: tuple[int, int]
    bits: int
    scale: Float[Tensor, "out groups"]
    zero: Float[Tensor, "out groups"] | None = None
    group_index: Integer[Tensor, " in"] | None = None
    rounds_inputs: bool = False

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.scale.shape[1]

    @property
    def grid(self) -> Grid:
        """Scales and zero points in float32."""
        scale = self.scale.float()
        zero = torch.full_like(scale, 2 ** (self.bits - 1)) if self.zero is None else self.zero.float()
        return Grid(scale, zero, self.bits, self.shape[1] // self.groups)

    def codes(self) -> UInt8[Tensor, "out in"]:
        """One byte for each code."""
        return unpack_rows(self.packed, self.bits)[:, : self.shape[1]]

    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix in float32."""
        width = self.shape[1] // self.groups
        index = self.group_index
        scale, zero = (
            numbers.repeat_interleave(width, 1) if index is None else numbers[:, index.long()]
            for numbers in self.grid[:2]
        )
        # In this order, as scales of 32 bits are not exact in s c − s z.
        return (self.codes() - zero).mul_(scale)

    def to_format(self) -> PackedCodes | None:
        """The same matrix as a format of laconic, without a bias; None if no format holds the same numbers."""
        sorted_matrix = self._with_neighbouring_groups()
        if sorted_matrix is None or not torch.equal(self.scale.half().float(), self.scale.float()):
            return None
        if self.rounds_inputs:
            codes = (self.codes() ^ 128).view(torch.int8)
            return DynamicInt8.from_codes(codes, self.scale.float()[:, 0])
        grid = sorted_matrix.grid
        return Quantized.from_codes(self.codes(), grid, symmetric=self.zero is None)

    def _with_neighbouring_groups(self) -> "CodedMatrix | None":
        """This matrix, where `group_index` says nothing else than that groups are neighbouring columns."""
        columns, index = self.shape[1], self.group_index
        usual = torch.arange(columns) // (columns // self.groups)
        return replace(self, group_index=None) if index is None or torch.equal(index.long(), usual) else None


def unpack_rows(rows: UInt8[Tensor, "rows bytes"], bits: int) -> UInt8[Tensor, "rows codes"]:
    """The codes of rows of bytes, with those of the unused bits at the end of a row.

    Args:
        rows: the bytes of each row.
        bits: bits of a code.

    Example:
        >>> unpack_rows(torch.tensor([[0x10], [0x32]], dtype=torch.uint8), bits=4)
        tensor([[0, 1],
                [2, 3]], dtype=torch.uint8)
    """
    # As many bytes as bits hold eight codes.
    filled = pad(rows, (0, -rows.shape[1] % bits))
    codes = unpack(filled.reshape(-1), bits, filled.numel() * 8 // bits)
    return codes.view(len(rows), filled.shape[1] * 8 // bits)[:, : rows.shape[1] * 8 // bits]
