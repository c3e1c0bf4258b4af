"""A matrix of codes of up to 4 bits in groups, as it is packed, and the kernel that reads two codes a byte.

torch multiplies inputs in bfloat16 by Σ_g (s_g (q − 8) + t_g) where q in [0, 16) and a group is of 32, 64, 128 or 256
columns. A weight w = s (c − z) is of that form with q = c, t = s (8 − z); where c − z + 8 fits 4 bits, as it does on
every symmetric grid and on all of 3 bits and fewer, with q = c − z + 8 and t = 0, which is exact. Longer groups,
that of a whole row or of the whole matrix included, are several of these with one and the same scale.
"""

from collections.abc import Callable, Mapping
from math import gcd
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import pad

from laconic.formats.kernels import DECODED, Decoded, Kernel, KernelFamily, aligned
from laconic.numerics.grid import Grid, values_of
from laconic.numerics.packing import packed_nbytes, unpack

MOST_BITS = 4
GROUPS = (256, 128, 64, 32)
"""Columns of one scale that torch takes."""
OUTPUTS = 16
"""Whose multiple torch wants the outputs to be."""
MOST_ROWS = 64
"""Generating takes as many rows as texts, or beams. What judges a model takes a row a token, many more: it decodes, so
that its figures are those of the exact matrix, but for layers that see one row of each text, as poolers do."""


class Packed(NamedTuple):
    """Codes without gaps, the grids that they lie on, and numbers that the columns are multiplied by besides."""

    codes: UInt8[Tensor, " bytes"]
    grid: Grid
    shape: tuple[int, int]
    column_scales: Float[Tensor, " in"] | None

    @property
    def unpacked(self) -> UInt8[Tensor, "out in"]:
        """A byte for each code."""
        return unpack(self.codes, self.grid.bits, self.shape[0] * self.shape[1]).view(self.shape)

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The matrix multiplied out, in fp32 and then rounded."""
        values = values_of(self.unpacked, self.grid)
        return (values if self.column_scales is None else values.mul_(self.column_scales)).to(dtype)


class WeightOnly4(Kernel):
    """Inputs in bfloat16, codes in another 4 bits for each weight, packed as torch reads them.

    Raises:
        RuntimeError: no group that torch takes divides those of the matrix.
    """

    def __init__(self, matrix: Packed) -> None:
        out_features, width = matrix.shape
        self._group = group_of(matrix.grid.group, width)
        if self._group is None:
            raise RuntimeError(f"{width} columns in groups of {matrix.grid.group} are no multiple of {GROUPS[-1]}")
        codes, scales = shifted(matrix, self._group)
        more = -out_features % OUTPUTS
        self._codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(pad(codes, (0, 0, 0, more)), 1)
        self._scales = pad(scales, (0, 0, 0, more)).bfloat16().contiguous()
        self._outputs, self._column_scales = out_features, matrix.column_scales

    @property
    def nbytes(self) -> int:
        columns = 0 if self._column_scales is None else self._column_scales.nbytes
        return self._codes.nbytes + self._scales.nbytes + columns

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        scaled = x if self._column_scales is None else x * self._column_scales
        operands = (aligned(scaled.bfloat16()), self._codes, self._group, self._scales)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(*operands)[:, : self._outputs].to(x.dtype)
        return (y if bias is None else y + bias).contiguous()


def group_of(group: int | None, width: int) -> int | None:
    """The most columns that torch takes as a group and that never lie in two groups of the matrix; None: none do."""
    # A shorter group at the end begins where a whole one would.
    common = width if group is None or group >= width else gcd(group, width)
    return next((columns for columns in GROUPS if common % columns == 0), None)


def shifted(matrix: Packed, group: int) -> tuple[Integer[Tensor, "out in"], Float[Tensor, "groups out 2"]]:
    """q, and s with t of every `group` columns."""
    out_features, width = matrix.shape
    scale, zero = matrix.grid.columns(torch.arange(0, width, group, device=matrix.codes.device))
    scale, zero = scale.expand(out_features, -1), zero.expand(out_features, -1)
    # The scale as it will be multiplied by, so that the code z still stands for zero.
    scale = scale.bfloat16().float()
    codes = matrix.unpacked.int()
    centred = codes.view(out_features, -1, group) + (8 - zero.int())[..., None]
    if centred.min() >= 0 and centred.max() < 2**MOST_BITS:
        return centred.view(out_features, width), torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1)
    return codes, torch.stack((scale, scale * (8 - zero)), -1).transpose(0, 1)


class FewBits(KernelFamily[Packed]):
    """Codes of one number of bits on grids of one kind."""

    label = "int4"
    # Some tenths of a millisecond are not worth a measurement, nor bfloat16.
    small = DECODED
    most_rows = MOST_ROWS

    def __init__(self, bits: int, group: int | None, symmetric: bool) -> None:
        self.bits, self.group, self.symmetric = bits, group, symmetric
        shared = "one group" if group is None else f"groups of {group}"
        self.name = f"{bits} bits, {shared}{', symmetric' if symmetric else ''}"

    @property
    def makers(self) -> Mapping[str, Callable[[Packed, torch.dtype], Kernel]]:
        return KERNELS

    def example(self, shape: tuple[int, int], generator: torch.Generator) -> Packed:
        codes = torch.randint(
            0, 256, (packed_nbytes(shape[0] * shape[1], self.bits),), dtype=torch.uint8, generator=generator
        )
        if extra := shape[0] * shape[1] * self.bits % 8:
            codes[-1] &= 2**extra - 1
        grids = (1, 1) if self.group is None else (shape[0], -(-shape[1] // self.group))
        scale = (torch.rand(grids, generator=generator) / 100).half().float()
        zero = torch.randint(0, 2**self.bits, grids, generator=generator).float()
        if self.symmetric:
            zero.fill_(2 ** (self.bits - 1))
        return Packed(codes, Grid(scale, zero, self.bits, self.group), shape, None)

    def dense(self, matrix: Packed, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        return matrix.dense(dtype)


KERNELS: Mapping[str, Callable[[Packed, torch.dtype], Kernel]] = {
    DECODED: lambda matrix, dtype: Decoded(lambda: matrix.dense(dtype)),
    "weight-only": lambda matrix, _: WeightOnly4(matrix),
}
"""A kernel that keeps the dense matrix is not among them: these layers are there to save memory."""
