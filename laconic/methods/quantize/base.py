"""Base classes of the quantizing methods: the number of bits, the groups that share a scale, and the candidates.

`group_size` columns of a row share a scale; the last group of a row is shorter where the width is no multiple of it.
Zeros of an earlier step (`LayerStats.support`) stay zero, and only the codes of the other weights are stored.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.errors import UserError
from laconic.formats import PackedCodes, Quantized
from laconic.methods.base import Candidates, Method
from laconic.methods.prediction import predict_candidates
from laconic.numerics.grid import GridSpec, QuantizedWeight
from laconic.numerics.grid_search import LARGEST_SCALE
from laconic.numerics.moments import check_finite

MIN_BITS, MAX_BITS = 2, 8
"""Smallest and largest number of bits of a code."""

Solver = Callable[[int], PackedCodes]
"""Quantizes one matrix to any number of bits."""


@dataclass(frozen=True, kw_only=True)
class QuantizationMethod(Method):
    """A method that stores each weight as a code of a few bits.

    Args:
        bits: bits of each code; in place of `keep`.
        group_size: columns of a row that share a scale; `channel` for a whole row, `tensor` for the whole matrix.

    Example:
        >>> from laconic.methods import Rtn
        >>> Rtn().with_keep(0.15, shape=(64, 64)).bits  # 64 weights also share 20 bits of scale and zero point
        4
    """

    family: ClassVar[str] = "quantization"
    example: ClassVar[str] = "bits=4"
    keeps_support: ClassVar[bool] = True

    bits: Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)] | None = None
    group_size: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = 64

    @abstractmethod
    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        """A function that quantizes `weight` to any number of bits; the work that all share is done once, here."""

    @abstractmethod
    def empty_codes(self, bits: int, shape: tuple[int, int], kept: int | None) -> PackedCodes:
        """The format of a matrix of `shape` (out, in), without its codes; `kept` weights are nonzero, None for all."""

    def meta_format(self, shape: tuple[int, int], kept: int | None = None) -> PackedCodes:
        with torch.device("meta"):
            return self.empty_codes(MIN_BITS if self.code_bits is None else self.code_bits, shape, kept)

    @property
    def code_bits(self) -> int | None:
        """Bits of a code; None where no size is set."""
        return self.bits

    @property
    def has_size(self) -> bool:
        return self.code_bits is not None

    @property
    def sizes(self) -> "Sequence[QuantizationMethod]":
        """A copy for each size that the method offers, smallest first."""
        return [self.with_bits(bits) for bits in range(MIN_BITS, MAX_BITS + 1)]

    def sizes_for(self, shape: tuple[int, int]) -> "Sequence[QuantizationMethod]":
        """The members of `sizes` that fit a matrix of `shape` (out, in), smallest first."""
        return self.sizes

    def nbytes_for(self, shape: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes on disk of an unpruned matrix of `shape` (out, in) after this method, whose size is set."""
        return self.meta_format(shape).nbytes()

    def group_columns(self, width: int) -> int | None:
        """Number of columns of a row that share a scale, for a row of `width`; None if all weights share one."""
        if isinstance(self.group_size, int):
            return min(self.group_size, width)
        return width if self.group_size == "channel" else None

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> PackedCodes:
        """The quantized matrix.

        Raises:
            UserError: no size is set, or a weight is NaN, infinite or larger than a scale of 16 bits can be.
        """
        if self.code_bits is None:
            raise UserError(f"{self.name} needs a size: give keep, or {self.name}:bits=B with B from 2 to 8.")
        check_range(weight, self.name)
        return self.solver(weight, stats)(self.code_bits)

    def with_keep(
        self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32
    ) -> "QuantizationMethod":
        budget = keep * shape[0] * shape[1] * dtype.itemsize
        sizes = self.sizes_for(shape)
        fitting = [method for method in sizes if method.nbytes_for(shape, dtype) <= budget]
        return fitting[-1] if fitting else sizes[0]

    def without_size(self) -> "QuantizationMethod":
        return self.with_bits(None)

    def with_bits(self, bits: int | None) -> "QuantizationMethod":
        """A copy with another number of bits; None for no size."""
        return replace(self, bits=bits)

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        def compress() -> list[PackedCodes]:
            solve = self.solver(weight, stats)
            return [solve(method.code_bits) for method in self.sizes if method.code_bits is not None]

        return predict_candidates(weight, stats, self.sizes, compress)


@dataclass(frozen=True, kw_only=True)
class AffineQuantization(QuantizationMethod):
    """A method that quantizes to evenly spaced values, scale · (code − zero point), and returns a `Quantized`.

    Args:
        symmetric: the zero point is fixed at 2^(b−1); a negative scale puts the one extra value on the positive side.
        clip: search for the range of each group; otherwise it spans all of the group's weights.
    """

    scales_columns: ClassVar[bool] = False
    """True if each column has a scale in addition to the scales of groups."""

    symmetric: bool = False
    clip: bool = True

    def empty_codes(self, bits: int, shape: tuple[int, int], kept: int | None) -> PackedCodes:
        return Quantized.empty(
            out_features=shape[0],
            in_features=shape[1],
            bits=bits,
            group=self.group_columns(shape[1]),
            symmetric=self.symmetric,
            kept=kept,
            scaled=self.scales_columns,
        )

    def grid_spec(self, bits: int, width: int) -> GridSpec:
        """The specification of the grids of a matrix of `width` columns."""
        return GridSpec(bits, self.group_columns(width), self.symmetric, self.clip)

    def to_quantized(
        self, result: QuantizedWeight, dtype: torch.dtype, support: Bool[Tensor, "out in"] | None
    ) -> PackedCodes:
        """The format of codes on their grids; `support` is True at kept weights."""
        return Quantized.from_codes(result.codes, result.grid, self.symmetric, dtype, support)


def check_range(weight: Float[Tensor, "out in"], method: str) -> None:
    """Raise UserError where a weight is NaN, infinite or larger than a scale of 16 bits can be.

    Example:
        >>> check_range(torch.tensor([[1e6]]), "rtn")
        Traceback (most recent call last):
        laconic.errors.UserError: rtn cannot quantize weights beyond 65504; check the model.
    """
    check_finite(weight, f"{method} cannot quantize weights that are NaN or infinite; check the model.")
    if weight.abs().max() > LARGEST_SCALE:
        raise UserError(f"{method} cannot quantize weights beyond {LARGEST_SCALE:.0f}; check the model.")
