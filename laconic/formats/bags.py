"""Products of codes and a few rows of inputs, by a function of torch for quantized embeddings.

A weight is w_ij = s_ig (c_ij − z_ig), where g is the group of column j. With a number m in the middle of the codes,

    y_i = Σ_g s_ig Σ_{j ∈ g} x_j (c_ij − m)  +  Σ_g s_ig (m − z_ig) Σ_{j ∈ g} x_j.

The sum over a group is an embedding bag: the embedding of "token" j is column j of the codes minus m, its weight is
x_j, and a bag has the columns of a group. torch reads embeddings of 2, 4 or 8 bits, and computes in fp32. So nothing is
rounded: the result is that of the decoded matrix, except for the order of the sums.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor
from torch.nn.functional import pad

from laconic.formats.code_matrix import CodeMatrix
from laconic.formats.kernels import Kernel
from laconic.numerics.packing import pack

BAG_BITS = (2, 4, 8)
"""Bits that an embedding's numbers can have in torch."""
BAGS = {
    2: torch.ops.quantized.embedding_bag_2bit_rowwise_offsets,
    4: torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
    8: torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
}


class BagKernel(Kernel):
    """Keeps a transposed copy of the codes: 2, 4 or 8 bits for each weight, and 8 bytes for each scale.

    Args:
        matrix: the matrix.
    """

    def __init__(self, matrix: CodeMatrix) -> None:
        self._outputs, self._width = matrix.shape
        grid, middle = matrix.grid, 2 ** (matrix.grid.bits - 1)
        self._group = grid.group or self._width
        self._bits = next(bits for bits in BAG_BITS if bits >= grid.bits)
        self._embeddings = to_embeddings(matrix.unpacked_codes, self._bits, middle)
        self._scale = grid.scale.T.contiguous()
        shift = grid.scale * (middle - grid.zero)
        self._shift = shift.expand(self._outputs, -1).T.contiguous() if shift.any() else None
        self._column_scales = matrix.column_scales

    @property
    def nbytes(self) -> int:
        kept = (self._embeddings, self._scale, self._shift, self._column_scales)
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        weights = x.float()
        if self._column_scales is not None:
            weights = weights * self._column_scales
        tokens, starts = bags(len(x), self._width, self._group)
        # They are read in the order of memory, whichever strides they have.
        options = (False, 0, False, weights.contiguous().view(-1), None, False)
        sums = BAGS[self._bits](self._embeddings, tokens, starts, *options)
        y = sums[:, : self._outputs].view(len(x), -1, self._outputs).mul_(self._scale).sum(1)
        if self._shift is not None:
            y.addmm_(self._group_sums(weights), self._shift)
        return (y if bias is None else y.add_(bias)).to(x.dtype)

    def _group_sums(self, weights: Float[Tensor, "rows in"]) -> Float[Tensor, "rows groups"]:
        missing = -self._width % self._group
        filled = pad(weights, (0, missing)) if missing else weights
        return filled.view(len(weights), -1, self._group).sum(2)


def to_embeddings(codes: UInt8[Tensor, "out in"], bits: int, middle: int) -> UInt8[Tensor, "in bytes"]:
    """The columns of codes as embeddings: the numbers, and their scale 1 and shift −`middle`.

    Args:
        codes: one byte for each code.
        bits: bits of a number in an embedding: 2, 4 or 8.
        middle: what an embedding subtracts from the codes.

    Example:
        >>> to_embeddings(torch.tensor([[1], [2]], dtype=torch.uint8), bits=4, middle=8)
        tensor([[ 33,   0,  60,   0, 200]], dtype=torch.uint8)
    """
    columns = pad(codes.T, (0, -codes.shape[0] % (8 // bits)))
    numbers = torch.tensor([1.0, -middle], dtype=torch.float32 if bits == max(BAG_BITS) else torch.float16)
    packed = pack(columns.reshape(-1), bits).view(len(columns), -1)
    return torch.cat((packed, numbers.view(torch.uint8).expand(len(columns), -1)), dim=1)


@lru_cache(maxsize=64)
def bags(rows: int, width: int, group: int) -> tuple[Int32[Tensor, " tokens"], Int32[Tensor, " bags"]]:
    """The tokens of all bags, and the place of each bag's first token, for rows of `width` inputs.

    Example:
        >>> bags(rows=2, width=3, group=2)
        (tensor([0, 1, 2, 0, 1, 2], dtype=torch.int32), tensor([0, 2, 3, 5], dtype=torch.int32))
    """
    starts = torch.arange(0, width, group, dtype=torch.int32)
    firsts = torch.arange(0, rows * width, width, dtype=torch.int32)[:, None] + starts
    return torch.arange(width, dtype=torch.int32).repeat(rows), firsts.view(-1)
