"""Quantizing on evenly spaced grids: `symmetric` or not, with the range searched for (`clip`) or as it is."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from laconic.formats import Quantized
from laconic.methods.quantize.size import Quantizing
from laconic.numerics.grid import Grid, Spacing, fit_grid


@dataclass(frozen=True, kw_only=True)
class Affine(Quantizing):
    """A method whose result is a `Quantized`.

    symmetric: no zero points are stored; the scale's sign says on which side the odd value lies.
    clip:      search for the range of each group.
    """

    scales_columns: ClassVar[bool] = False
    """True where each column has a scale of its own besides."""

    symmetric: bool = False
    clip: bool = True

    def empty(self, bits: int, shape: tuple[int, int], kept: int | None) -> Quantized:
        return Quantized.shell(
            out_features=shape[0],
            in_features=shape[1],
            bits=bits,
            group=self.group_of(shape[1]),
            symmetric=self.symmetric,
            kept=kept,
            scaled=self.scales_columns,
        )

    def grid(
        self,
        weight: Float[Tensor, "out in"],
        bits: int,
        support: Bool[Tensor, "out in"] | None,
        importance: Float[Tensor, "..."] | None = None,
    ) -> Grid:
        """The grids of `weight`; `importance` (in,) or (out, in) of each weight's squared error, all alike if None."""
        spacing = Spacing(bits, self.group_of(weight.shape[1]), self.symmetric, self.clip)
        return fit_grid(weight, spacing, importance, support)

    def quantized(
        self,
        codes: Integer[Tensor, "out in"],
        grid: Grid,
        dtype: torch.dtype,
        support: Bool[Tensor, "out in"] | None,
    ) -> Quantized:
        """The format of these codes."""
        return Quantized.of(codes, grid, self.symmetric, dtype, support)
