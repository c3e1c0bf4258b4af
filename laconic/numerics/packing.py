"""Integers of a few bits each, packed without gaps, and masks.

Code i is the bits i·b … (i+1)·b − 1 of a stream of bytes. The lowest bit comes first, in codes and in bytes, and the
last byte is filled up with zeros. A mask is a stream of codes of one bit. Eight codes of b bits are b bytes, so they
are handled as one word of 64 bits. Where a byte holds several whole codes, each byte of the stream has its own word.
"""

import math

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor
from torch.nn.functional import pad

MAX_BITS = 62
"""Bits of the widest codes, so that 2^bits fits into a signed word of 64 bits."""


WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The dtype of a word of so many bytes."""


def packed_nbytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` each.

    Example:
        >>> packed_nbytes(3, bits=3)
        2
    """
    return math.ceil(count * bits / 8)


def pack(codes: Integer[Tensor, " n"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Pack integers into bytes.

    Args:
        codes: integers in [0, 2^bits).
        bits: 1 to 62.

    Returns:
        ⌈n · bits / 8⌉ bytes.

    Raises:
        ValueError: `bits` is outside 1 to 62.

    Example:
        >>> pack(torch.tensor([1, 2, 3]), bits=4)
        tensor([33,  3], dtype=torch.uint8)
    """
    _check(bits)
    if bits > 8:
        return pack(_digits(codes, bits), 1)
    if 8 % bits == 0 and bits < 8:
        return _fold(codes, bits)
    eights = pad(codes, (0, -len(codes) % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for place in range(8):
        words |= eights[:, place].long() << bits * place
    stream = torch.empty(len(words), bits, dtype=torch.uint8, device=codes.device)
    for place in range(bits):
        stream[:, place] = (words >> 8 * place) & 0xFF
    return stream.view(-1)[: packed_nbytes(len(codes), bits)].contiguous()


def _fold(codes: Integer[Tensor, " n"], bits: int) -> UInt8[Tensor, " bytes"]:
    """The same where a byte holds several whole codes: its codes are the bytes of one word, which are shifted together.

    Example:
        >>> _fold(torch.tensor([1, 2, 3]), bits=4)
        tensor([33,  3], dtype=torch.uint8)
    """
    per_byte = 8 // bits
    words = pad(codes.byte(), (0, -len(codes) % per_byte)).contiguous().view(WORDS[per_byte])
    folded = words.clone()
    for place in range(1, per_byte):
        folded |= words >> place * (8 - bits)
    return folded.byte()


def unpack(stream: UInt8[Tensor, " bytes"], bits: int, count: int) -> Integer[Tensor, " n"]:
    """Read what `pack` wrote.

    Args:
        stream: the bytes.
        bits: bits of a code.
        count: number of codes.

    Returns:
        The codes, uint8 up to 8 bits, int64 above.

    Raises:
        ValueError: `bits` is outside 1 to 62, or the stream has another length.

    Example:
        >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), bits=4, count=3)
        tensor([1, 2, 3], dtype=torch.uint8)
    """
    _check(bits)
    if len(stream) != packed_nbytes(count, bits):
        raise ValueError(f"{count} codes of {bits} bits are {packed_nbytes(count, bits)} bytes; got {len(stream)}")
    if bits > 8:
        digits = unpack(stream, 1, count * bits).view(count, bits)
        codes = torch.zeros(count, dtype=torch.int64, device=stream.device)
        for place in range(bits):
            codes |= digits[:, place].long() << place
        return codes
    if bits == 8:
        return stream.clone()
    if 8 % bits == 0:
        words = stream.to(WORDS[8 // bits])
        return _spread(words, bits, 8 // bits).view(torch.uint8)[:count]
    parts = pad(stream, (0, -len(stream) % bits)).view(-1, bits)
    filled = stream.new_zeros(len(parts), 8)
    for place in range(bits):
        filled[:, place] = parts[:, place]
    return _spread(filled.view(torch.int64).view(-1), bits, 8).view(torch.uint8)[:count]


def unpack_at(stream: UInt8[Tensor, " bytes"], bits: int, which: Integer[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Codes at some positions of a stream; the others are not decoded.

    Args:
        stream: the bytes.
        bits: bits of a code, 1 to 8.
        which: positions, in any shape.

    Example:
        >>> unpack_at(pack(torch.tensor([1, 2, 3]), 4), bits=4, which=torch.tensor([2]))
        tensor([3], dtype=torch.uint8)
    """
    first = which * bits
    place = first // 8
    # A code spans at most two bytes; the byte after the last one is not part of any code.
    word = stream[place].int() | stream[(place + 1).clamp(max=len(stream) - 1)].int() << 8
    return ((word >> first % 8) & (2**bits - 1)).to(torch.uint8)


def pack_mask(mask: Bool[Tensor, "..."]) -> UInt8[Tensor, " bytes"]:
    """A mask as ⌈numel / 8⌉ bytes, row by row.

    Example:
        >>> pack_mask(torch.tensor([[True, False], [True, True]]))
        tensor([13], dtype=torch.uint8)
    """
    return pack(mask.reshape(-1).view(torch.uint8), 1)


def unpack_mask(stream: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """The mask of `shape` that `pack_mask` packed.

    Raises:
        ValueError: the stream has another length.

    Example:
        >>> unpack_mask(torch.tensor([13], dtype=torch.uint8), (2, 2))
        tensor([[ True, False],
                [ True,  True]])
    """
    return unpack(stream, 1, math.prod(shape)).view(torch.bool).view(shape)


def _spread(words: Integer[Tensor, " n"], bits: int, codes: int) -> Integer[Tensor, " n"]:
    """Move the codes in the low bits of each word apart, to one byte each. Changes `words`.

    Both halves of a word's codes are separated, then both halves of each half, and so on. Whole words are shifted, as
    that is faster than writing the bytes of each place.

    Args:
        words: `codes` codes of `bits` bits each, without gaps; a word has `codes` bytes.
        bits: bits of a code, less than 8.
        codes: 2, 4 or 8.
    """
    half = codes // 2
    while half:
        low = sum(((1 << half * bits) - 1) << 16 * half * pair for pair in range(codes // half // 2))
        moved = words << half * (8 - bits)
        high = low << 8 * half
        if 2 * bits <= 8:
            # The bits that are moved away do not come to lie over those that stay.
            words.bitwise_or_(moved).bitwise_and_(low | high)
        else:
            words.bitwise_and_(low).bitwise_or_(moved.bitwise_and_(high))
        half //= 2
    return words


def _digits(codes: Integer[Tensor, " n"], bits: int) -> UInt8[Tensor, " digits"]:
    """The bits of each code, lowest first."""
    digits = torch.empty(len(codes), bits, dtype=torch.uint8, device=codes.device)
    for place in range(bits):
        digits[:, place] = (codes.long() >> place) & 1
    return digits.view(-1)


def _check(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"codes are of 1 to {MAX_BITS} bits; got {bits}")


def as_bytes(values: Tensor) -> UInt8[Tensor, " bytes"]:
    """Numbers as the bytes of 16-bit floats, which a cast of the model to another dtype does not change.

    Example:
        >>> from_bytes(as_bytes(torch.tensor([0.5, 2.0])))
        tensor([0.5000, 2.0000])
    """
    return values.half().contiguous().view(-1).view(torch.uint8)


def from_bytes(stream: UInt8[Tensor, " bytes"]) -> Float[Tensor, " n"]:
    """The numbers that `as_bytes` stored, in fp32."""
    return stream.view(torch.float16).float()
