"""Products with codes of up to 4 bits: the layout that torch's int4 kernel reads, and when it can be used.

torch multiplies inputs in bfloat16 by Σ_g (s_g (q − 8) + t_g) with q in [0, 16) and groups of 32, 64, 128 or 256
columns. A weight w = s (c − z) has that form with q = c, t = s (8 − z). Where c − z + 8 fits into 4 bits, as it does on
every symmetric grid and with 3 bits and fewer, q = c − z + 8 and t = 0 are used, which is exact. Longer groups, such as
a whole row or the whole matrix, become several torch groups with one scale.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from math import gcd

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.functional import pad

from laconic.formats.bags import BagKernel, byte_bags
from laconic.formats.code_matrix import CodeMatrix, Decoder
from laconic.formats.kernels import DECODED, DecodingKernel, Kernel, KernelFamily, align
from laconic.formats.products import multiply
from laconic.numerics.grid import Grid
from laconic.numerics.packing import packed_nbytes

MAX_BITS = 4
"""Bits of the widest codes that torch's int4 kernel reads."""
GROUPS = (256, 128, 64, 32)
"""Group sizes that torch supports."""
OUTPUTS = 16
"""torch needs the number of outputs to be a multiple of it."""
MAX_ROWS = 64
"""Generation has one row per text or beam. Evaluation has one row per token, which is many more: the matrix is decoded,
so that the results are exact, except for layers with one row per text, such as poolers."""


class WeightOnly4(Kernel):
    """Multiplies inputs in bfloat16 by codes in torch's int4 layout, which takes 4 more bits of memory for each weight.

    It rounds the scales to bfloat16, so it is only for layers in bfloat16.

    Raises:
        RuntimeError: the codes have more bits, no group size of torch divides the groups of the matrix, or the inputs
            have another dtype.
    """

    def __init__(self, matrix: CodeMatrix, dtype: torch.dtype) -> None:
        if dtype is not torch.bfloat16 or matrix.grid.bits > MAX_BITS:
            raise RuntimeError(
                f"this kernel has inputs in bfloat16 and {MAX_BITS} bits; got {dtype}, {matrix.grid.bits}"
            )
        out_features, width = matrix.shape
        self._group = torch_group_size(matrix.grid.group, width)
        if self._group is None:
            raise RuntimeError(f"{width} columns in groups of {matrix.grid.group} are no multiple of {GROUPS[-1]}")
        codes, scales = to_torch_layout(matrix, self._group)
        padding = -out_features % OUTPUTS
        self._codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(pad(codes, (0, 0, 0, padding)), 1)
        self._scales = pad(scales, (0, 0, 0, padding)).bfloat16().contiguous()
        self._outputs, self._column_scales = out_features, matrix.column_scales

    @property
    def nbytes(self) -> int:
        columns = 0 if self._column_scales is None else self._column_scales.nbytes
        return self._codes.nbytes + self._scales.nbytes + columns

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        scaled = x if self._column_scales is None else x * self._column_scales
        operands = (align(scaled.bfloat16()), self._codes, self._group, self._scales)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(*operands)[:, : self._outputs].to(x.dtype)
        return (y if bias is None else y + bias).contiguous()


def torch_group_size(group: int | None, width: int) -> int | None:
    """The largest group size of torch that divides the groups of a matrix.

    Args:
        group: columns that share a scale; None for the whole matrix.
        width: columns of the matrix.

    Returns:
        256, 128, 64 or 32; None if none of them fits.

    Example:
        >>> torch_group_size(96, 384)
        32
    """
    # A shorter last group begins at a multiple of the group size.
    common = width if group is None or group >= width else gcd(group, width)
    return next((columns for columns in GROUPS if common % columns == 0), None)


def to_torch_layout(matrix: CodeMatrix, group: int) -> tuple[Integer[Tensor, "out in"], Float[Tensor, "groups out 2"]]:
    """q (out, in), and s and t (groups, out, 2) of the module's docstring, for groups of `group` columns."""
    out_features, width = matrix.shape
    scale, zero = matrix.grid.scale_and_zero(torch.arange(0, width, group, device=matrix.codes.device))
    scale, zero = scale.expand(out_features, -1), zero.expand(out_features, -1)
    # The scale in the dtype that torch uses, so that the code z still means zero.
    scale = scale.bfloat16().float()
    codes = matrix.unpacked_codes.int()
    centred = codes.view(out_features, -1, group) + (8 - zero.int())[..., None]
    if centred.min() >= 0 and centred.max() < 2**MAX_BITS:
        return centred.view(out_features, width), torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1)
    return codes, torch.stack((scale, scale * (8 - zero)), -1).transpose(0, 1)


class Int4Family(KernelFamily[CodeMatrix]):
    """Codes of 2 to 8 bits on grids of one kind.

    Args:
        bits: bits of a code.
        group: columns that share a scale; None for the whole matrix.
        symmetric: whether the zero point is the same everywhere.
    """

    # For so small a matrix, tenths of a millisecond do not justify a measurement.
    small = DECODED
    max_rows = MAX_ROWS
    keeps_decoder = True

    def __init__(self, bits: int, group: int | None, symmetric: bool) -> None:
        self.bits, self.group, self.symmetric = bits, group, symmetric
        self.label = "int4" if bits <= MAX_BITS else "codes"
        shared = "one group" if group is None else f"groups of {group}"
        self.name = f"packed codes of {bits} bits, {shared}{', symmetric' if symmetric else ''}"

    @property
    def makers(self) -> Mapping[str, Callable[[CodeMatrix, torch.dtype], Kernel]]:
        return KERNELS

    def example(self, shape: tuple[int, int], generator: torch.Generator) -> CodeMatrix:
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
        return CodeMatrix(codes, Grid(scale, zero, self.bits, self.group), shape, None)

    def dense(self, matrix: CodeMatrix, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        return matrix.dense(dtype)


@cache
def int4_family(bits: int, group: int | None, symmetric: bool) -> Int4Family:
    """The family of these grids; layers ask for it at each call."""
    return Int4Family(bits, group, symmetric)


def decoding_kernel(matrix: CodeMatrix, dtype: torch.dtype) -> DecodingKernel:
    """A kernel that decodes the matrix at each call, with the scales and zero points that it was constructed from.

    Args:
        matrix: the matrix.
        dtype: dtype of the inputs.
    """
    decoder = Decoder(matrix)
    return DecodingKernel(partial(decoder.dense, dtype), multiply, decoder.nbytes)


KERNELS: Mapping[str, Callable[[CodeMatrix, torch.dtype], Kernel]] = {
    DECODED: decoding_kernel,
    "bags": lambda matrix, _: BagKernel(matrix),
    "byte-bags": byte_bags,
    "weight-only": WeightOnly4,
}
"""None of them keeps the dense matrix, because these layers are used to save memory."""
