"""Rounding to the steps of a grid: whole numbers from 0 to 2^b − 1, or the sixteen uneven steps of `iq4_nl`.

Midpoints between the uneven steps are multiples of ½, so the nearest step of u depends only on ⌊2u⌋, and is looked up.
"""

from functools import cache

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

UNEVEN_STEPS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The steps q of the codes of `iq4_nl`.

Source: `kvalues_iq4nl` of ggml-common.h in llama.cpp.
"""
SIDE = 128
"""All uneven steps lie between −128 and 128."""


def round_steps_(u: Float[Tensor, "*some"], bits: int, uneven: bool = False) -> Float[Tensor, "*some"]:
    """The step nearest to each number, in place.

    Args:
        u: the numbers, in units of a step.
        bits: b.
        uneven: take the uneven steps.

    Example:
        >>> round_steps_(torch.tensor([-1.0, 2.4, 9.0]), bits=2).tolist()
        [0.0, 2.0, 3.0]
        >>> round_steps_(torch.tensor([-200.0, 2.4, 9.0]), bits=4, uneven=True).tolist()
        [-127.0, 1.0, 13.0]
    """
    if not uneven:
        return u.round_().clamp_(0, 2**bits - 1)
    halves = u.mul_(2).floor_().add_(2 * SIDE).clamp_(0, 4 * SIDE - 1)
    # Indices of 32 bits take half the memory traffic.
    places = halves.to(torch.int32).view(-1)
    return u.copy_(_nearest(u.device).to(u.dtype).index_select(0, places).view(u.shape))


def step_codes(q: Float[Tensor, "*some"], uneven: bool = False) -> UInt8[Tensor, "*some"]:
    """The codes of steps.

    Args:
        q: results of `round_steps_`.
        uneven: whether they are uneven.

    Example:
        >>> step_codes(torch.tensor([-127.0, 1.0]), uneven=True)
        tensor([0, 8], dtype=torch.uint8)
    """
    return _codes(q.device)[(q + SIDE).long()] if uneven else q.to(torch.uint8)


def code_steps(codes: Integer[Tensor, "*some"]) -> Float[Tensor, "*some"]:
    """The uneven steps of codes, in fp32; the inverse of `step_codes`.

    Example:
        >>> code_steps(torch.tensor([0, 8])).tolist()
        [-127.0, 1.0]
    """
    return torch.tensor(UNEVEN_STEPS, dtype=torch.float32, device=codes.device)[codes.long()]


@cache
def _nearest(device: torch.device) -> Float[Tensor, " halves"]:
    """The nearest step of the numbers between each two multiples of ½."""
    steps = torch.tensor(UNEVEN_STEPS, dtype=torch.float32)
    middles = (torch.arange(4 * SIDE) - 2 * SIDE) / 2 + 0.25
    return steps[(middles[:, None] - steps).abs().argmin(1)].to(device)


@cache
def _codes(device: torch.device) -> UInt8[Tensor, " steps"]:
    """The code of each whole number that is a step."""
    codes = torch.zeros(2 * SIDE, dtype=torch.uint8)
    codes[torch.tensor(UNEVEN_STEPS) + SIDE] = torch.arange(len(UNEVEN_STEPS), dtype=torch.uint8)
    return codes.to(device)
