"""Ŵ on evenly spaced grids: codes of 2 to 8 bits and, for each group of weights, a scale and a zero point.

Codes of up to 4 bits may be multiplied by as they are (`laconic.formats.int4_kernels`), which takes another 4 bits in
memory for each weight of a layer that was called so. `dense()` is exact all the same.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor, nn

from laconic.formats.int4_kernels import MOST_BITS, FewBits, Packed, group_of
from laconic.formats.kernels import KernelFamily
from laconic.formats.packed import Coded, as_bytes, from_bytes, frozen, stored
from laconic.numerics.grid import Grid, codes_of, values_of
from laconic.numerics.packing import pack, packed_nbytes, unpack
from laconic.numerics.tied import Sharing, grid_places


class Quantized(Coded):
    """w = s (c − z). Scales take 16 bits each, zero points as many as a code, and none on a symmetric grid.

    group:         columns of a row that share a scale; None where the whole matrix does.
    column_scales: 16 bits for each column, by which it is multiplied besides; None where there are none.
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
        self.scales = stored(2 * grids)
        self.zeros = None if symmetric else stored(packed_nbytes(grids, bits))
        self.column_scales = None

    @classmethod
    def of(
        cls,
        codes: Integer[Tensor, "out in"],
        grid: Grid,
        symmetric: bool,
        dtype: torch.dtype = torch.float32,
        mask: Bool[Tensor, "out in"] | None = None,
    ) -> "Quantized":
        """The format of the codes of a matrix, without a bias.

        symmetric: z is 2^{b−1} everywhere, and so not stored.
        dtype:     that of `dense()`.
        mask:      True where a weight is kept; the others are zero whatever their code is.
        """
        kept = None if mask is None else int(mask.count_nonzero())
        with torch.device("meta"):
            layer = cls((codes.shape[0], codes.shape[1]), grid.bits, grid.group, symmetric, kept)
        layer.to_empty(device=codes.device)
        layer.encode(codes, mask)
        layer.scales = frozen(as_bytes(grid.scale))
        if not symmetric:
            layer.zeros = frozen(pack(grid.zero.reshape(-1).to(torch.uint8), grid.bits))
        return layer.to(dtype)

    def scale_columns(self, scales: Float[Tensor, " in"]) -> None:
        """Multiply every column by the number of 16 bits that `scales` comes to."""
        self.column_scales = frozen(as_bytes(scales))

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, groups) of the scales."""
        return (1, 1) if self.group is None else (self.out_features, -(-self.in_features // self.group))

    @property
    def grid(self) -> Grid:
        """The grids, unpacked."""
        scale = from_bytes(self.scales.detach()).view(self.grid_shape)
        if self.zeros is None:
            return Grid(scale, torch.full_like(scale, 2 ** (self.bits - 1)), self.bits, self.group)
        zero = unpack(self.zeros.detach(), self.bits, scale.numel()).view(self.grid_shape)
        return Grid(scale, zero.float(), self.bits, self.group)

    @property
    def family(self) -> KernelFamily[Any] | None:
        # A weight that was pruned has no code to multiply by.
        fits = self.kept is None and self.bits <= MOST_BITS and group_of(self.group, self.in_features) is not None
        return FewBits(self.bits, self.group, self.symmetric) if fits else None

    @property
    def matrix(self) -> Packed:
        columns = None if self.column_scales is None else from_bytes(self.column_scales.detach())
        return Packed(self.codes.detach(), self.grid, self.shape, columns)

    def decoded(self, codes: Integer[Tensor, "rows columns"], columns: Tensor | None) -> Float[Tensor, "rows columns"]:
        values = values_of(codes, self.grid, columns)
        if self.column_scales is None:
            return values
        scales = from_bytes(self.column_scales.detach())
        return values.mul_(scales if columns is None else scales[columns])

    def codes_for(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        if self.column_scales is None:
            return codes_of(weight, self.grid)
        scales = from_bytes(self.column_scales.detach())
        return codes_of(weight * torch.where(scales == 0, 0, 1 / scales), self.grid)

    @property
    def numbers(self) -> nn.Parameter:
        return self.scales

    def sharing(self, codes: Integer[Tensor, "out in"]) -> Sharing:
        grid = self.grid
        factors = values_of(codes, grid._replace(scale=torch.ones_like(grid.scale)))
        if self.column_scales is not None:
            factors *= from_bytes(self.column_scales.detach())
        return Sharing(grid_places(self.shape, self.group, codes.device), factors)

    def spec(self) -> dict[str, Any]:
        scaled = {} if self.column_scales is None else {"scaled": True}
        return {**self.coded_spec(), "group": self.group, "symmetric": self.symmetric, **scaled}

    @classmethod
    def shell(cls, **spec: Any) -> "Quantized":
        scaled = spec.pop("scaled", False)
        layer = cls((spec.pop("out_features"), spec.pop("in_features")), **spec)
        if scaled:
            layer.column_scales = stored(2 * layer.in_features)
        return layer
