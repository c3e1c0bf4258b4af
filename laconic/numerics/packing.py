"""Whole numbers of a few bits each, packed without gaps: code i is the bits i·b … (i+1)·b − 1 of a stream of bytes.

The lowest bit comes first, in the codes and in the bytes, and the last byte is filled up with zeros. A mask is a
stream of codes of one bit. Eight codes of b bits are b bytes, so that they are handled as one word of 64 bits.
"""

import math

import torch
from jaxtyping import Bool, Integer, UInt8
from torch import Tensor
from torch.nn.functional import pad

MOST = 62
"""Bits of the widest codes: what a signed word of 64 bits can hold as a count."""


def packed_nbytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` each."""
    return math.ceil(count * bits / 8)


def pack(codes: Integer[Tensor, " n"], bits: int) -> UInt8[Tensor, " bytes"]:
    """`codes`, each in [0, 2^bits), as ⌈n · bits / 8⌉ bytes; `bits` is 1 to 62.

    Raises:
        ValueError: `bits` is outside of that.
    """
    _check(bits)
    if bits > 8:
        return pack(_digits(codes, bits), 1)
    eights = pad(codes, (0, -len(codes) % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for place in range(8):
        words |= eights[:, place].long() << bits * place
    stream = torch.empty(len(words), bits, dtype=torch.uint8, device=codes.device)
    for place in range(bits):
        stream[:, place] = (words >> 8 * place) & 0xFF
    return stream.view(-1)[: packed_nbytes(len(codes), bits)].contiguous()


def unpack(stream: UInt8[Tensor, " bytes"], bits: int, count: int) -> Integer[Tensor, " n"]:
    """The first `count` codes of a stream that `pack` made: uint8 up to 8 bits, int64 above.

    Raises:
        ValueError: `bits` is outside 1 to 62, or the stream is of another length.
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
    if 8 % bits == 0:
        # No code lies in two bytes, and bytes are quicker to shift than words.
        codes = torch.empty(len(stream), 8 // bits, dtype=torch.uint8, device=stream.device)
        for place in range(8 // bits):
            codes[:, place] = (stream >> bits * place) & (2**bits - 1)
        return codes.view(-1)[:count].contiguous()
    parts = pad(stream, (0, -len(stream) % bits)).view(-1, bits)
    words = torch.zeros(len(parts), dtype=torch.int64, device=stream.device)
    for place in range(bits):
        words |= parts[:, place].long() << 8 * place
    codes = torch.empty(len(words), 8, dtype=torch.uint8, device=stream.device)
    for place in range(8):
        codes[:, place] = (words >> bits * place) & (2**bits - 1)
    return codes.view(-1)[:count].contiguous()


def take(stream: UInt8[Tensor, " bytes"], bits: int, which: Integer[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """The codes of some positions of a stream of codes of 1 to 8 bits; the others are not looked at."""
    first = which * bits
    place = first // 8
    # A code lies in two bytes at most; the byte after the last one is never part of any.
    word = stream[place].int() | stream[(place + 1).clamp(max=len(stream) - 1)].int() << 8
    return ((word >> first % 8) & (2**bits - 1)).to(torch.uint8)


def pack_mask(mask: Bool[Tensor, "..."]) -> UInt8[Tensor, " bytes"]:
    """⌈numel / 8⌉ bytes, row by row."""
    return pack(mask.reshape(-1).view(torch.uint8), 1)


def unpack_mask(stream: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """The mask of `shape` that `pack_mask` packed.

    Raises:
        ValueError: the stream is of another length.
    """
    return unpack(stream, 1, math.prod(shape)).view(torch.bool).view(shape)


def _digits(codes: Integer[Tensor, " n"], bits: int) -> UInt8[Tensor, " digits"]:
    """The bits of each code, lowest first."""
    digits = torch.empty(len(codes), bits, dtype=torch.uint8, device=codes.device)
    for place in range(bits):
        digits[:, place] = (codes.long() >> place) & 1
    return digits.view(-1)


def _check(bits: int) -> None:
    if not 1 <= bits <= MOST:
        raise ValueError(f"codes are of 1 to {MOST} bits; got {bits}")
