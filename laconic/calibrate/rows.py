"""The input rows of a matrix, one line a row of the batch, and which of them are no padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from laconic.model import InputTokens

Mask = Bool[Tensor, "sequences tokens"]


@dataclass(frozen=True)
class Rows:
    """counted: True where a row counts. tokens_first: the model holds its tokens before its sequences."""

    counted: Mask
    tokens_first: bool

    def lines(self, x: Tensor) -> Tensor:
        """`x`, as the model has it, as (sequences, tokens, width)."""
        x = x.transpose(0, 1) if self.tokens_first else x
        return x.reshape(*self.counted.shape, x.shape[-1])

    @cached_property
    def complete(self) -> bool:
        """True where nothing is padding, so that nothing need be copied to leave it out."""
        return bool(self.counted.all())

    def of(self, lines: Tensor) -> Tensor:
        """Those of `lines` (or tokens) that count, one after the other."""
        return lines.flatten(0, 1) if self.complete else lines[self.counted]

    def tokens(self, x: Tensor) -> Tensor:
        """The token numbers `x` as (sequences, tokens)."""
        return x.reshape(self.counted.shape)


def rows_of(shape: Sequence[int], reads: InputTokens, tokens_first: bool, source: Mask, target: Mask) -> Rows:
    """The rows of an input of `shape`, without its width, in a batch with these masks."""
    leading = (shape[1], shape[0], *shape[2:]) if tokens_first else tuple(shape)
    if reads is InputTokens.EITHER:
        reads = InputTokens.TARGET if _fits(leading, target) or not _fits(leading, source) else InputTokens.SOURCE
    mask = target if reads is InputTokens.TARGET else source
    return Rows(_every(leading, mask) if reads is InputTokens.OWN else _counted(leading, mask), tokens_first)


def _fits(shape: tuple[int, ...], mask: Mask) -> bool:
    return shape[:2] == tuple(mask.shape) or shape == (mask.numel(),)


def _counted(shape: tuple[int, ...], mask: Mask) -> Mask:
    if shape == (mask.numel(),):
        return mask
    if len(shape) == 1 or shape[0] != len(mask) or shape[1] < mask.shape[1]:
        return _every(shape, mask)
    # A model may pad its rows further, on the right, to a multiple of its attention window.
    mask = functional.pad(mask, (0, shape[1] - mask.shape[1]), value=False)
    return mask.reshape(*mask.shape, *(1 for _ in shape[2:])).expand(shape).reshape(len(mask), -1)


def _every(shape: tuple[int, ...], mask: Mask) -> Mask:
    """A pooled vector is a sequence of one; what all rows of the batch have in common (positions) is one sequence."""
    number = torch.Size(shape).numel()
    sequences = 1 if shape[0] == 1 or number % len(mask) else len(mask)
    return torch.ones(sequences, number // sequences, dtype=torch.bool, device=mask.device)
