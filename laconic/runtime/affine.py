"""The codes of a matrix as other runtimes read them: whole numbers, and a scale and a zero point for each group.

    w_ij = s_ig (c_ij − z_ig) k_j,   g = ⌊j / group⌋

is what all formats of evenly spaced codes are, whatever their bits; int8 has z = 128 once its codes are counted from 0.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from laconic.formats import DynamicInt8, PackedCodes, Quantized
from laconic.numerics.packing import from_bytes

WIDEST = 256
NARROWEST = 16
"""Columns of a block that ONNX Runtime's MatMulNBits takes: a power of two between these."""
MOST_BITS = 4
"""Of the codes that it multiplies by quickly with inputs in float32."""


class Affine(NamedTuple):
    """Codes of a matrix with what they stand for, all unpacked.

    group:   columns of a row that share a scale, the last group being narrower where it must.
    columns: k, or None where it is 1.
    """

    codes: UInt8[Tensor, "out in"]
    scale: Float[Tensor, "out groups"]
    zero: Float[Tensor, "out groups"]
    bits: int
    group: int
    columns: Float[Tensor, " in"] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def block(self) -> int | None:
        """Columns of the blocks of MatMulNBits; None where the codes do not fit it."""
        if self.bits > MOST_BITS:
            return None
        shared = self.group if self.scale.shape[1] > 1 else WIDEST
        # Where a row is one group any block will do, and one that is little wider than the row is padded little.
        fitting = [block for block in _powers() if shared % block == 0 and (block < 2 * self.shape[1])]
        return max(fitting, default=None)


def affine_of(layer: PackedCodes) -> Affine | None:
    """The codes of `layer`; None where they are not evenly spaced. What was pruned has the code of zero."""
    if isinstance(layer, DynamicInt8):
        codes, scale = layer.matrix
        shifted = (codes.to(torch.int16) + 128).to(torch.uint8)
        return Affine(shifted, scale[:, None], torch.full_like(scale[:, None], 128), 8, layer.in_features, None)
    if not isinstance(layer, Quantized):
        return None
    scale, zero, bits, group = layer.grid
    rows, width = layer.shape
    group = width if group is None else min(group, width)
    scale, zero = (numbers.expand(rows, -1).contiguous() for numbers in (scale, zero))
    codes, mask = layer.unpack_codes(), layer.support
    if mask is not None:
        codes = torch.where(mask, codes, zero.repeat_interleave(group, dim=1)[:, :width].to(torch.uint8))
    columns = None if layer.column_scales is None else from_bytes(layer.column_scales.detach())
    return Affine(codes, scale, zero, bits, group, columns)


def _powers() -> list[int]:
    return [2**power for power in range(NARROWEST.bit_length() - 1, WIDEST.bit_length())]
