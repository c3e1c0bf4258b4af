"""Integers times a scale, plus a shift, row by row, by functions that torch has for quantized embeddings."""

from functools import cache, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int32, Integer, UInt8
from torch import Tensor
from torch.jit._trace import is_tracing

WORD = torch.int64.itemsize
NUMBERS = torch.int32
"""Two numbers in fp16, as one word."""
PACKED_BAGS = {
    2: torch.ops.quantized.embedding_bag_2bit_rowwise_offsets,
    4: torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
}
"""Weighted sums of rows of packed codes, by the bits of a code."""


def scale_rows(
    codes: Integer[Tensor, "rows columns"], scale: Float[Tensor, " rows"], shift: Float[Tensor, " rows"]
) -> Float[Tensor, "rows columns"]:
    """scale · code + shift in fp32.

    On a CPU torch converts, scales and shifts in one pass.

    Args:
        codes: integers.
        scale: of each row, in fp32.
        shift: of each row, in fp32.

    Example:
        >>> scale_rows(torch.tensor([[0, 3]], dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([-1.0]))
        tensor([[-1.0000,  0.5000]])
    """
    if codes.dtype != torch.uint8 or not _is_eager(codes) or not codes.numel():
        return (codes * scale[:, None]).add_(shift[:, None])
    # A row of the embedding is its codes, and the bytes of its scale and its shift.
    count, columns = codes.shape
    rows = codes.new_empty(count, columns + 2 * scale.itemsize)
    if columns % WORD == 0 and codes.is_contiguous() and codes.storage_offset() % WORD == 0:
        # Copies of short rows are much faster in words than in bytes.
        rows.view(torch.int64)[:, :-1] = codes.view(torch.int64)
        numbers = rows.view(torch.float32)
        numbers[:, -2], numbers[:, -1] = scale, shift
    else:
        rows[:, :columns], rows[:, columns:] = codes, torch.stack((scale, shift), dim=1).view(torch.uint8)
    return torch.ops.quantized.embedding_bag_byte_unpack(rows)


def can_scale_packed(stream: UInt8[Tensor, " bytes"], bits: int, columns: int) -> bool:
    """Whether `PackedRows` can have rows of `columns` codes each.

    Args:
        stream: the bytes of all codes.
        bits: bits of a code.
        columns: codes of a row.

    Example:
        >>> stream = torch.zeros(32, dtype=torch.uint8)
        >>> can_scale_packed(stream, bits=4, columns=64), can_scale_packed(stream, bits=3, columns=64)
        (True, False)
    """
    if bits not in PACKED_BAGS or not stream.numel() or not _is_eager(stream):
        return False
    return columns * bits % (8 * NUMBERS.itemsize) == 0 and stream.storage_offset() % NUMBERS.itemsize == 0


class PackedRows(NamedTuple):
    """Rows of packed codes, with the scale and zero point of each row, as torch's functions for embeddings read them.

    Args:
        words: the codes of each row.
        numbers: the scale 1 and the shift −zero of the embedding of each row, in one word.
        scale: the scale of each row, in fp32.
        bits: 2 or 4, the bits of a code.

    Example:
        >>> codes = torch.tensor([0x10, 0x32, 0x54, 0x76], dtype=torch.uint8)
        >>> rows = PackedRows.of(codes, 4, torch.tensor([0.5]), torch.tensor([2.0]))
        >>> rows.scaled(0, 1)
        tensor([[-1.0000, -0.5000,  0.0000,  0.5000,  1.0000,  1.5000,  2.0000,  2.5000]])
    """

    words: Int32[Tensor, "rows words"]
    numbers: Int32[Tensor, "rows 1"]
    scale: Float[Tensor, " rows"]
    bits: int

    @classmethod
    def of(
        cls, stream: UInt8[Tensor, " bytes"], bits: int, scale: Float[Tensor, " rows"], zero: Float[Tensor, " rows"]
    ) -> "PackedRows":
        """The rows of a stream of codes, for which `can_scale_packed` holds. The codes are not copied.

        Args:
            stream: the codes, as `laconic.numerics.packing.pack` returns them.
            bits: 2 or 4, the bits of a code.
            scale: of each row, in fp32.
            zero: of each row, a whole number from 0 to 2^bits − 1.
        """
        numbers = _one_and_shift(bits).index_select(0, zero.int())[:, None]
        # The scales are read in the order of memory, whichever strides they have.
        return cls(stream.view(NUMBERS).view(len(scale), -1), numbers, scale.contiguous(), bits)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept in addition to the codes."""
        return self.numbers.nbytes + self.scale.nbytes

    def scaled(self, start: int, stop: int) -> Float[Tensor, "some columns"]:
        """scale · (code − zero) in fp32, of the rows from `start` up to `stop`."""
        # An embedding is the codes of a row minus its zero point. The scale is its weight in a bag of its own.
        rows = torch.cat((self.words[start:stop], self.numbers[start:stop]), dim=1).view(torch.uint8)
        which = _order(len(rows))
        return PACKED_BAGS[self.bits](rows, which, which, False, 0, False, self.scale[start:stop], None, False)


@lru_cache(maxsize=16)
def _order(count: int) -> Int32[Tensor, " count"]:
    """The numbers from 0 to `count` − 1."""
    return torch.arange(count, dtype=torch.int32)


@cache
def _one_and_shift(bits: int) -> Int32[Tensor, " zeros"]:
    """The scale 1 and the shift −z of an embedding, in one word, for every zero point z of codes of `bits` bits."""
    shift = -torch.arange(2.0**bits)
    return torch.stack((torch.ones_like(shift), shift), dim=1).half().view(NUMBERS).view(-1)


def _is_eager(codes: Tensor) -> bool:
    """Whether the functions for embeddings can be called: they take tensors on a CPU, and cannot be traced."""
    return codes.is_cpu and not torch.compiler.is_compiling() and not is_tracing()
