"""Products of codes and a few rows of inputs, by a function of torch for quantized embeddings.

A weight is w_ij = s_ig (c_ij − z_ig), where g is the group of column j. With a number m in the middle of the codes,

    y_i = Σ_g s_ig ( Σ_{j ∈ g} x_j (c_ij − m)  −  (z_ig − m) Σ_{j ∈ g} x_j ).

The sum over a group is an embedding bag: the embedding of "token" j is column j of the codes minus m, and its weight is
x_j. A bag has the columns of a group and, unless they all are m, its zero points with the weight −Σ x_j. torch reads
embeddings of 2, 4 or 8 bits, and computes in fp32. So nothing is rounded: the result is that of the decoded matrix,
except for the order of the sums. If the differences c_ij − z_ig fit into the bits of an embedding, less the least
of them, they take the place of the codes. Then −m is the least, and the second term is missing.
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


MAX_PACKED_BITS = 4
"""The most bits of a number that shares a byte with another one."""
BLOCKS, MOST_BLOCKS = (384, 512), 8
"""Outputs whose codes lie together, so that memory is read in its order; and how often inputs are repeated for them."""


class BagKernel(Kernel):
    """Keeps a transposed copy of the codes: 2, 4 or 8 bits for each weight, 4 bytes for each scale, and as many bits as
    for a weight for each zero point, unless the differences of codes and zero points fit into them.

    Args:
        matrix: the matrix.
        bits: bits of a number in the copy; None for the fewest that the codes fit into.
    """

    def __init__(self, matrix: CodeMatrix, bits: int | None = None) -> None:
        (self._outputs, width), grid = matrix.shape, matrix.grid
        self._group = grid.group or width
        self._bits = bits or next(count for count in BAG_BITS if count >= grid.bits)
        self._missing = -width % self._group
        scale, zero = (numbers.T.expand(-1, self._outputs) for numbers in grid[:2])
        columns, middle = matrix.unpacked_codes.T, 2 ** (grid.bits - 1)
        differences = columns.short() - zero.short().repeat_interleave(self._group, dim=0)[:width]
        least, most = int(differences.min()), int(differences.max())
        self._has_zeros = most - least >= 2**self._bits
        if not self._has_zeros:
            columns, middle = (differences - least).to(torch.uint8), -least
        columns = pad(columns, (0, 0, 0, self._missing)).view(-1, self._group, self._outputs)
        if self._has_zeros:
            columns = torch.cat((columns, zero[:, None].to(torch.uint8)), dim=1)
        blocks = (self._outputs // block for block in BLOCKS if self._outputs % block == 0)
        self._blocks = next((count for count in blocks if count <= MOST_BLOCKS), 1)
        self._block = self._outputs // self._blocks
        parted = columns.reshape(-1, self._blocks, self._block).transpose(0, 1)
        self._embeddings = to_embeddings(parted.flatten(0, 1).T, self._bits, middle)
        self._scale = scale.reshape(len(scale), self._blocks, -1).transpose(0, 1).contiguous()
        self._column_scales = matrix.column_scales

    @property
    def nbytes(self) -> int:
        kept = (self._embeddings, self._scale, self._column_scales)
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def __call__(self, x: Float[Tensor, "rows in"], bias: Float[Tensor, " out"] | None) -> Float[Tensor, "rows out"]:
        weights, rows = x.float(), len(x)
        if self._column_scales is not None:
            weights = weights * self._column_scales
        if self._missing:
            weights = pad(weights, (0, self._missing))
        if self._has_zeros:
            groups = weights.reshape(rows, -1, self._group)
            weights = torch.cat((groups, groups.sum(2, keepdim=True).neg_()), dim=2)
        # They are read in the order of memory, whichever strides they have.
        weights = weights.reshape(rows, 1, -1).expand(-1, self._blocks, -1).reshape(-1).contiguous()
        tokens, starts = bags(rows, len(self._embeddings), self._group + self._has_zeros)
        sums = BAGS[self._bits](self._embeddings, tokens, starts, False, 0, False, weights, None, False)
        sums = sums[:, : self._block].view(rows, self._blocks, -1, self._block)
        y = sums.mul_(self._scale).sum(2).view(rows, self._outputs)
        return (y if bias is None else y.add_(bias)).to(x.dtype)


def byte_bags(matrix: CodeMatrix, dtype: torch.dtype) -> BagKernel:
    """A kernel with a byte for each code: it keeps more memory, and unpacks nothing.

    Args:
        matrix: the matrix.
        dtype: dtype of the inputs.

    Raises:
        RuntimeError: the codes need a byte anyway, or the inputs have 16 bits. The bytes and the codes together would
            take nearly as much memory as a dense matrix of 16 bits.
    """
    if matrix.grid.bits > MAX_PACKED_BITS or dtype is not torch.float32:
        raise RuntimeError(f"this kernel has inputs in float32 and 4 bits; got {dtype}, {matrix.grid.bits}")
    return BagKernel(matrix, max(BAG_BITS))


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
