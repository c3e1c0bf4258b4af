"""The parts of a block of llama.cpp as bytes: 16-bit numbers, planes of codes, and integer scales of groups.

Integers of six bits are stored in twelve bytes for a block of 256 columns, in two ways. `q4_k` and `q5_k` have eight
scales σ and eight minima μ:

    bytes 0 to 3:   σ_0 to σ_3, and above them the upper two bits of σ_4 to σ_7
    bytes 4 to 7:   μ_0 to μ_3, and above them the upper two bits of μ_4 to μ_7
    bytes 8 to 11:  the lower four bits of σ_4 to σ_7, and above them those of μ_4 to μ_7

`q3_k` has sixteen scales, stored as σ + 32:

    bytes 0 to 7:   the lower four bits of σ_0 to σ_7, and above them those of σ_8 to σ_15
    bytes 8 to 11:  the upper two bits of σ_j, σ_{j+4}, σ_{j+8} and σ_{j+12} in byte 8 + j, lowest bits first

Source: `get_scale_min_k4` and `dequantize_row_q3_K` of ggml-quants.c in llama.cpp.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

Fields = Mapping[str, Tensor]
"""Numbers of some blocks, (blocks, n) each, by name: `codes`, `d`, `m`, `scales`, `minima`."""
SHIFT_6 = 32
"""The offset of the signed scales of six bits."""


class Part(NamedTuple):
    """One part of a block.

    Args:
        size: its bytes; for a plane of codes, 0.
        read: the fields in its bytes.
        write: its bytes, from the fields.
        bits: bits of a code in a plane of codes, whose field is `plane_name(bits)`; else 0.
    """

    size: int
    read: Callable[[Tensor], dict[str, Tensor]]
    write: Callable[[Fields], Tensor]
    write: Callable[[Fields], Tensor]
    bits: int = 0

    def nbytes(self, columns: int) -> int:
        """Its bytes in a block of so many columns."""
        return self.size + columns * self.bits // 8


def read_plane(data: UInt8[Tensor, "blocks bytes"], bits: int, strip: int) -> UInt8[Tensor, "blocks codes"]:
    """The bits of codes that lie in a plane.

    Args:
        data: its bytes in each block.
        bits: bits of a code in it; 1, 2, 4 or 8.
        strip: codes that lie beside each other before the next ones lie above them.

    Example:
        >>> read_plane(torch.tensor([[0x21, 0x43]], dtype=torch.uint8), bits=4, strip=2)
        tensor([[1, 3, 2, 4]], dtype=torch.uint8)
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    strips = data.reshape(len(data), -1, 1, strip) >> shifts[:, None]
    return (strips & (2**bits - 1)).view(len(data), -1)


def write_plane(codes: UInt8[Tensor, "blocks codes"], bits: int, strip: int) -> UInt8[Tensor, "blocks bytes"]:
    """The bytes of a plane: the inverse of `read_plane`.

    Example:
        >>> [hex(byte) for byte in write_plane(torch.tensor([[1, 3, 2, 4]], dtype=torch.uint8), bits=4, strip=2)[0]]
        ['0x21', '0x43']
    """
    strips = codes.reshape(len(codes), -1, 8 // bits, strip)
    data = torch.zeros_like(strips[:, :, 0])
    for k, own in enumerate(strips.unbind(2)):
        data |= own << (bits * k)
    return data.reshape(len(codes), -1)


def _read_pairs(data: UInt8[Tensor, "blocks 12"]) -> dict[str, Tensor]:
    scales, minima, low = data.split(4, 1)
    return {
        "scales": torch.cat([scales & 63, (low & 15) | (scales >> 6 << 4)], 1),
        "minima": torch.cat([minima & 63, (low >> 4) | (minima >> 6 << 4)], 1),
    }


def _write_pairs(fields: Fields) -> UInt8[Tensor, "blocks 12"]:
    (s, s_late), (m, m_late) = (_as_bytes(fields[name]).split(4, 1) for name in ("scales", "minima"))
    return torch.cat([s | (s_late >> 4 << 6), m | (m_late >> 4 << 6), (s_late & 15) | ((m_late & 15) << 4)], 1)


def _read_sixes(data: UInt8[Tensor, "blocks 12"]) -> dict[str, Tensor]:
    low, high = data.split((8, 4), 1)
    scales = read_plane(low, 4, 8) | (read_plane(high, 2, 4) << 4)
    return {"scales": scales.to(torch.int8) - SHIFT_6}


def _write_sixes(fields: Fields) -> UInt8[Tensor, "blocks 12"]:
    scales = _as_bytes(fields["scales"] + SHIFT_6)
    return torch.cat([write_plane(scales & 15, 4, 8), write_plane(scales >> 4, 2, 4)], 1)


def _as_bytes(numbers: Integer[Tensor, "blocks n"]) -> UInt8[Tensor, "blocks n"]:
    return numbers.to(torch.uint8)


def plane_name(bits: int) -> str:
    """The name of the field of a plane of codes."""
    return f"{bits} bits"


def plane(bits: int, strip: int) -> Part:
    """A plane of codes.

    Args:
        bits: bits of a code in it.
        strip: codes that lie beside each other before the next ones lie above them.

    Example:
        >>> plane(4, strip=32).nbytes(256)
        128
    """
    name = plane_name(bits)
    return Part(
        0,
        lambda data: {name: read_plane(data, bits, strip)},
        lambda fields: write_plane(fields[name], bits, strip),
        bits,
    )


def half(name: str) -> Part:
    """A number of 16 bits.

    Args:
        name: the name of its field.
    """
    return Part(
        2,
        lambda data: {name: data.contiguous().view(torch.float16)},
        lambda fields: fields[name].contiguous().view(torch.uint8),
    )


PAIRS_4 = Part(
    16,
    lambda data: {"scales": data & 15, "minima": data >> 4},
    lambda fields: _as_bytes(fields["scales"]) | (_as_bytes(fields["minima"]) << 4),
)
"""A scale and a minimum of four bits for each of sixteen groups."""
PAIRS_6 = Part(12, _read_pairs, _write_pairs)
"""A scale and a minimum of six bits for each of eight groups."""
SIGNED_6 = Part(12, _read_sixes, _write_sixes)
"""A signed scale of six bits for each of sixteen groups."""
SIGNED_8 = Part(
    16,
    lambda data: {"scales": data.contiguous().view(torch.int8)},
    lambda fields: fields["scales"].to(torch.int8).contiguous().view(torch.uint8),
)
"""A signed scale of eight bits for each of sixteen groups."""
