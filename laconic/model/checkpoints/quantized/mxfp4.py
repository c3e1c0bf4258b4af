"""Experts in 4-bit floats with one power of two for every 32, as gpt-oss is stored.

Each code is a float of 1 bit for its sign, 2 for its exponent and 1 for its mantissa, the first of two in the low half
of a byte; a scale is the exponent of two, plus 127 (OCP Microscaling Formats 1.0, section 5).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.model.checkpoints.quantized.reader import Reader, StoredTensors, UnreadableError

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CODES, _SCALES = "_blocks", "_scales"


def _dequantize(held: StoredTensors, said: Mapping[str, Any]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in held.tensors.items():
        if name.endswith(_CODES):
            stem = name.removesuffix(_CODES)
            scales = held.tensors.get(stem + _SCALES)
            if scales is None:
                raise UnreadableError(f"'{name}' is without its scales")
            # The class multiplies from the other side: (experts, in, out).
            found[stem] = decoded(tensor, scales).transpose(-1, -2).contiguous()
        elif not name.endswith(_SCALES):
            found[name] = tensor
    return found


def decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """The numbers in float32, of shape (…, 32 · groups), of codes (…, groups, 16) and scales (…, groups), in bytes."""
    values = torch.tensor([*VALUES, *(-value for value in VALUES)])
    pairs = torch.stack([values[(codes & 15).long()], values[(codes >> 4).long()]], -1)
    numbers = torch.ldexp(pairs.flatten(-2), scales.int().unsqueeze(-1) - 127)
    return numbers.flatten(-2)


MXFP4 = Reader(dequantize=_dequantize)
