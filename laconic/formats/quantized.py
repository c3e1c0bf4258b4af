"""Quantization on evenly spaced grids: codes of 2 to 8 bits, and a scale and a zero point for each group of weights.

A kernel may multiply a few rows by codes without decoding them (`laconic.formats.bags`, and for bfloat16
`laconic.formats.int4_kernels`). It keeps a copy of the codes in another order: 2, 4 or 8 more bits of memory for each
weight of a layer that it was used for. A decoded layer keeps 8 bytes for each group.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor, nn

from laconic.formats.base import byte_parameter, empty_bytes
from laconic.formats.code_matrix import CodeMatrix
from laconic.formats.int4_kernels import int4_family
from laconic.formats.kernels import KernelFamily
from laconic.formats.packed import PackedCodes
from laconic.numerics.grid import Grid, dequantize, quantize
from laconic.numerics.packing import as_bytes, from_bytes, pack, packed_nbytes, unpack
from laconic.numerics.scaling import TiedWeights, grid_indices


class Quantized(PackedCodes):
    """y = Ŵ x + bias with ŵ = scale · (code − zero point).

    Stored, in addition to the tensors of `PackedCodes`: `scales`, 16 bits for each group; `zeros`, as many bits as a
    code for each group, unless the grid is symmetric; `column_scales`, 16 bits for each column, if columns are scaled.

    Args:
        shape: (out, in).
        bits: bits of a code, 2 to 8.
        group: columns of a row that share a scale; None if the whole matrix shares one.
        symmetric: the zero point is 2^(bits − 1) everywhere.
        kept: number of nonzero weights; None if nothing was pruned.
        bias: whether there is a bias.

    Example:
        >>> from laconic.numerics.grid import GridSpec, fit_grid
        >>> weight = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> grid = fit_grid(weight, GridSpec(bits=2, group=4, clip=False))
        >>> layer = Quantized.from_codes(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), grid, symmetric=False)
        >>> layer.dense().tolist(), layer.nbytes()  # a byte of codes, two of the scale, one of the zero point
        ([[0.0, 1.0, 2.0, 3.0]], 4)
    """

    kind = "quantized"
    scales: nn.Parameter
    zeros: nn.Parameter | None
    column_scales: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, int],
        bits: int,
        group: int | None,
        symmetric: bool,
        kept: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(shape, bits, kept, bias)
        self.group, self.symmetric = group, symmetric
        grids = self.grid_shape[0] * self.grid_shape[1]
        self.scales = empty_bytes(2 * grids)
        self.zeros = None if symmetric else empty_bytes(packed_nbytes(grids, bits))
        self.column_scales = None

    @classmethod
    def from_codes(
        cls,
        codes: Integer[Tensor, "out in"],
        grid: Grid,
        symmetric: bool,
        dtype: torch.dtype = torch.float32,
        mask: Bool[Tensor, "out in"] | None = None,
    ) -> "Quantized":
        """The format of a matrix of codes, without a bias.

        Args:
            codes: the code of every weight.
            grid: scales and zero points.
            symmetric: zero points are 2^(bits − 1) everywhere, and not stored.
            dtype: dtype of `dense()`.
            mask: True where a weight is kept; the others are zero, whichever code they have. None keeps all.
        """
        kept = None if mask is None else int(mask.count_nonzero())
        layer = cls.uninitialized(
            codes.device, (codes.shape[0], codes.shape[1]), grid.bits, grid.group, symmetric, kept
        )
        layer.encode(codes, mask)
        layer.scales = byte_parameter(as_bytes(grid.scale))
        if not symmetric:
            layer.zeros = byte_parameter(pack(grid.zero.reshape(-1).to(torch.uint8), grid.bits))
        return layer.to(dtype)

    def scale_columns(self, scales: Float[Tensor, " in"]) -> None:
        """Multiply every column by a number, stored in 16 bits."""
        self.column_scales = byte_parameter(as_bytes(scales))

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, groups) of the scales."""
        return (1, 1) if self.group is None else (self.out_features, -(-self.in_features // self.group))

    @property
    def grid(self) -> Grid:
        """Scales and zero points, unpacked."""
        zeros = None if self.zeros is None else self.zeros.detach()
        return unpack_grid(self.scales.detach(), zeros, self.grid_shape, self.bits, self.group)

    @property
    def kernel_family(self) -> KernelFamily[Any] | None:
        # Pruned weights have no codes.
        return int4_family(self.bits, self.group, self.symmetric) if self.kept is None else None

    @property
    def matrix(self) -> CodeMatrix:
        columns = None if self.column_scales is None else from_bytes(self.column_scales.detach())
        return CodeMatrix(self.codes.detach(), self.grid, self.shape, columns)

    def dense(self) -> Float[Tensor, "out in"]:
        return super().dense() if self.kept is not None else self.matrix.dense(self.weight.dtype)

    def decode(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        values = dequantize(codes, self.grid, columns)
        if self.column_scales is None:
            return values
        scales = from_bytes(self.column_scales.detach())
        return values.mul_(scales if columns is None else scales[columns])

    def nearest_codes(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        if self.column_scales is None:
            return quantize(weight, self.grid)
        scales = from_bytes(self.column_scales.detach())
        return quantize(weight * torch.where(scales == 0, 0, 1 / scales), self.grid)

    @property
    def shared_values(self) -> nn.Parameter:
        return self.scales

    def tied_weights(self, codes: Integer[Tensor, "out in"]) -> TiedWeights:
        grid = self.grid
        factors = dequantize(codes, grid._replace(scale=torch.ones_like(grid.scale)))
        if self.column_scales is not None:
            factors *= from_bytes(self.column_scales.detach())
        return TiedWeights(grid_indices(self.shape, self.group, codes.device), factors)

    def spec(self) -> dict[str, Any]:
        scaled = {} if self.column_scales is None else {"scaled": True}
        return {**self.coded_spec(), "group": self.group, "symmetric": self.symmetric, **scaled}

    @classmethod
    def empty(cls, **spec: Any) -> "Quantized":
        scaled = spec.pop("scaled", False)
        layer = super().empty(**spec)
        if scaled:
            layer.column_scales = empty_bytes(2 * layer.in_features)
        return layer


def unpack_grid(
    scales: UInt8[Tensor, " bytes"],
    zeros: UInt8[Tensor, " packed"] | None,
    shape: tuple[int, int],
    bits: int,
    group: int | None,
) -> Grid:
    """The grid that is stored in bytes.

    Args:
        scales: 16 bits for each group.
        zeros: `bits` bits for each group; None if the zero point is 2^(bits − 1) everywhere.
        shape: (rows, groups).
        bits: bits of a code.
        group: columns that share a scale; None if the whole matrix shares one.
    """
    scale = from_bytes(scales).view(shape)
    if zeros is None:
        return Grid(scale, torch.full_like(scale, 2 ** (bits - 1)), bits, group)
    return Grid(scale, unpack(zeros, bits, scale.numel()).view(shape).float(), bits, group)
