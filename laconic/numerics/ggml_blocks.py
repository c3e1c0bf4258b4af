"""The blocks of llama.cpp: how codes and scales lie in bytes, and which numbers its kernels compute from them.

A row is cut into blocks of 32 or 256 columns, and every block stands for itself. Blocks of 32 hold one scale d, and
some a shift m, of 16 bits each: a weight is d q or d q + m. Blocks of 256 (the "K-quants") are cut into groups of 16 or
32 columns. Scales and minima of groups are integers σ and μ, in units of d and d_min of the block:

    w = (d σ) q − (d_min μ),

computed in fp32 in this order. q is the code c less an offset. In `iq4_nl` q is the c-th of sixteen uneven steps.

The bits of codes are cut into planes, such as the lowest four and the fifth. In a plane of b bits, strips of a number
of codes lie above each other: byte j of a strip has code j of the first strip in its lowest b bits, code j of the next
strip above, and so on up to eight bits (`laconic.numerics.ggml_bytes`).

Source: the structures in ggml-common.h and the functions `dequantize_row_*` of ggml-quants.c in llama.cpp.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Integer, UInt8
from torch import Tensor

from laconic.numerics.ggml_bytes import PAIRS_4, PAIRS_6, SIGNED_6, SIGNED_8, Part, half, plane, plane_name
from laconic.numerics.rounding import code_steps


@dataclass(frozen=True)
class BlockType:
    """One type of blocks.

    Args:
        name: its name in llama.cpp, in lower case.
        columns: columns of a block.
        bits: bits of a code.
        group: columns that share a scale; as many as `columns` where a block has one scale.
        parts: what a block consists of, in the order of its bytes: d, m or d_min, scales of groups, planes of codes.
        offset: q = c − offset.
        scale_bits: bits of the integer σ of each group, and of μ; None where a block has one scale.
        uneven: whether q is one of `laconic.numerics.rounding.UNEVEN_STEPS`.

    Example:
        >>> BLOCK_TYPES["q4_k"].nbytes, BLOCK_TYPES["q4_k"].groups, BLOCK_TYPES["q4_k"].has_minimum
        (144, 8, True)
    """

    name: str
    columns: int
    bits: int
    group: int
    parts: tuple[Part, ...]
    offset: int = 0
    scale_bits: int | None = None
    uneven: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return sum(part.nbytes(self.columns) for part in self.parts)

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return self.columns // self.group

    @property
    def has_minimum(self) -> bool:
        """Whether weights are shifted by a minimum, that of the block or one for each group."""
        return any(part is _M for part in self.parts)

    @property
    def sign_bit(self) -> int:
        """The bit of a code that is stored inverted: codes of eight bits are stored as signed q = c − 128."""
        return 128 if self.bits == 8 else 0

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """For each plane the bits of a code in it, and which bit of the code is the lowest of them."""
        # The plane of the lowest bits is the widest, wherever it lies.
        widths = sorted((part.bits for part in self.parts if part.bits), reverse=True)
        return tuple((bits, sum(widths[:k])) for k, bits in enumerate(widths))

    def row_nbytes(self, width: int) -> int:
        """Bytes of a row of `width` columns.

        Raises:
            ValueError: `width` is no multiple of the columns of a block.
        """
        if width % self.columns:
            raise ValueError(f"{self.name} needs rows of a multiple of {self.columns} columns; got {width}")
        return width // self.columns * self.nbytes


class BlockScales(NamedTuple):
    """The scales of the blocks of a matrix.

    Args:
        d: scale of each block.
        m: for blocks with one scale, m; for others d_min. None for types without a minimum.
        scales: σ of each group; None where a block has one scale.
        minima: μ of each group; None where there is none.
    """

    d: Float16[Tensor, "rows blocks"]
    m: Float16[Tensor, "rows blocks"] | None
    scales: Integer[Tensor, "rows groups"] | None
    minima: Integer[Tensor, "rows groups"] | None

    def with_codes(self, codes: Integer[Tensor, "rows columns"]) -> "BlockNumbers":
        """The numbers of blocks with these codes."""
        return BlockNumbers(codes.to(torch.uint8), *self)


class BlockNumbers(NamedTuple):
    """The numbers in the blocks of a matrix.

    Args:
        codes: c of every weight.
        d: scale of each block.
        m: for blocks with one scale, m; for others d_min. None for types without a minimum.
        scales: σ of each group; None where a block has one scale.
        minima: μ of each group; None where there is none.
    """

    codes: UInt8[Tensor, "rows columns"]
    d: Float16[Tensor, "rows blocks"]
    m: Float16[Tensor, "rows blocks"] | None
    scales: Integer[Tensor, "rows groups"] | None
    minima: Integer[Tensor, "rows groups"] | None

    @property
    def block_scales(self) -> BlockScales:
        """All but the codes."""
        return BlockScales(*self[1:])


def _by_name(*types: BlockType) -> dict[str, BlockType]:
    return {kind.name: kind for kind in types}


_D, _M = half("d"), half("m")
_NIBBLES, _FIFTH = plane(4, 16), plane(1, 1)
_K_NIBBLES, _K_TWOS, _K_ONES = plane(4, 32), plane(2, 32), plane(1, 32)

BLOCK_TYPES = _by_name(
    BlockType("q4_0", 32, bits=4, group=32, offset=8, parts=(_D, _NIBBLES)),
    BlockType("q4_1", 32, bits=4, group=32, parts=(_D, _M, _NIBBLES)),
    BlockType("q5_0", 32, bits=5, group=32, offset=16, parts=(_D, _FIFTH, _NIBBLES)),
    BlockType("q5_1", 32, bits=5, group=32, parts=(_D, _M, _FIFTH, _NIBBLES)),
    BlockType("q8_0", 32, bits=8, group=32, offset=128, parts=(_D, plane(8, 1))),
    BlockType("q2_k", 256, bits=2, group=16, scale_bits=4, parts=(PAIRS_4, _K_TWOS, _D, _M)),
    BlockType("q3_k", 256, bits=3, group=16, offset=4, scale_bits=6, parts=(_K_ONES, _K_TWOS, SIGNED_6, _D)),
    BlockType("q4_k", 256, bits=4, group=32, scale_bits=6, parts=(_D, _M, PAIRS_6, _K_NIBBLES)),
    BlockType("q5_k", 256, bits=5, group=32, scale_bits=6, parts=(_D, _M, PAIRS_6, _K_ONES, _K_NIBBLES)),
    BlockType("q6_k", 256, bits=6, group=16, offset=32, scale_bits=8, parts=(plane(4, 64), _K_TWOS, SIGNED_8, _D)),
    BlockType("iq4_nl", 32, bits=4, group=32, uneven=True, parts=(_D, _NIBBLES)),
)
"""Every type that is known here, by name."""


def unpack_blocks(data: UInt8[Tensor, "rows bytes"], kind: BlockType) -> BlockNumbers:
    """The numbers in the bytes of some rows.

    Args:
        data: the bytes of every row.
        kind: the type of the blocks.

    Raises:
        ValueError: the bytes of a row are no whole blocks.

    Example:
        >>> block = torch.tensor([[0, 60, 0x98] + 15 * [0x88]], dtype=torch.uint8)  # d = 1 as an fp16
        >>> numbers = unpack_blocks(block, BLOCK_TYPES["q4_0"])
        >>> numbers.d.item(), numbers.codes[0, 15:18].tolist()
        (1.0, [8, 9, 8])
    """
    if data.shape[1] % kind.nbytes:
        raise ValueError(f"rows of {kind.name} have a multiple of {kind.nbytes} bytes; got {data.shape[1]}")
    fields: dict[str, Tensor] = {}
    parts = data.reshape(-1, kind.nbytes).split([part.nbytes(kind.columns) for part in kind.parts], 1)
    for part, own in zip(kind.parts, parts, strict=True):
        fields |= part.read(own)
    planes = [fields[plane_name(bits)] << lowest for bits, lowest in kind.planes]
    fields["codes"] = torch.stack(planes).sum(0, dtype=torch.uint8) ^ kind.sign_bit
    shaped = {name: numbers.reshape(len(data), -1) for name, numbers in fields.items()}
    return BlockNumbers(shaped["codes"], shaped["d"], shaped.get("m"), shaped.get("scales"), shaped.get("minima"))


def pack_blocks(numbers: BlockNumbers, kind: BlockType) -> UInt8[Tensor, "rows bytes"]:
    """The bytes of some rows: the inverse of `unpack_blocks`.

    Args:
        numbers: integers must be in range: c in [0, 2^bits); σ and μ in [0, 2^scale_bits), signed σ of `q3_k` in
            [−32, 32) and of `q6_k` in [−128, 128).
        kind: the type of the blocks.

    Example:
        >>> kind = BLOCK_TYPES["q8_0"]
        >>> data = torch.arange(34, dtype=torch.uint8)[None]
        >>> bool((pack_blocks(unpack_blocks(data, kind), kind) == data).all())
        True
    """
    codes = numbers.codes.reshape(-1, kind.columns) ^ kind.sign_bit
    fields = {name: own.reshape(len(codes), -1) for name, own in numbers._asdict().items() if own is not None}
    fields |= {plane_name(bits): (codes >> lowest) & (2**bits - 1) for bits, lowest in kind.planes}
    return torch.cat([part.write(fields) for part in kind.parts], 1).reshape(len(numbers.codes), -1)


def group_scales(
    scales: "BlockScales",
) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows groups"] | None]:
    """The scale d σ of each group in fp32, and its minimum d_min μ (−m for blocks with one scale); None for none."""
    d, m = scales.d.float(), None if scales.m is None else scales.m.float()
    if scales.scales is None:
        return d, None if m is None else -m
    groups = scales.scales.shape[1] // max(d.shape[1], 1)
    scale = d.repeat_interleave(groups, 1) * scales.scales
    if m is None or scales.minima is None:
        return scale, None
    return scale, m.repeat_interleave(groups, 1) * scales.minima


def decode_numbers(numbers: BlockNumbers, kind: BlockType) -> Float[Tensor, "rows columns"]:
    """The weights that these numbers stand for, in fp32, bit for bit as llama.cpp computes them."""
    codes = numbers.codes
    steps = code_steps(codes) if kind.uneven else codes.float() - kind.offset
    scale, minimum = group_scales(numbers.block_scales)
    values = steps.view(*scale.shape, kind.group).mul_(scale[..., None])
    if minimum is not None:
        values -= minimum[..., None]
    return values.view(codes.shape)


def decode_blocks(data: UInt8[Tensor, "rows bytes"], kind: BlockType) -> Float[Tensor, "rows columns"]:
    """The weights in the bytes of some rows, in fp32, bit for bit as llama.cpp computes them.

    Args:
        data: the bytes of every row.
        kind: the type of the blocks.

    Example:
        >>> block = torch.tensor([[0, 56] + 16 * [0x98]], dtype=torch.uint8)  # d = ½ as an fp16
        >>> decode_blocks(block, BLOCK_TYPES["q4_0"])[0, 14:18].tolist()
        [0.0, 0.0, 0.5, 0.5]
    """
    return decode_numbers(unpack_blocks(data, kind), kind)
