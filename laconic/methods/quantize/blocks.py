"""The base class of methods that can round to the values of llama.cpp's blocks (`laconic.numerics.ggml_blocks`)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.errors import UserError
from laconic.formats import GgmlBlocks, PackedCodes
from laconic.methods.base import Candidates
from laconic.methods.quantize.base import AffineQuantization, QuantizationMethod
from laconic.methods.quantize.sampled_rows import sampled_candidates
from laconic.numerics.ggml_blocks import BLOCK_TYPES, BlockType
from laconic.numerics.grid import QuantizedWeight
from laconic.numerics.quantizer import QuantizerSpec

BlockGridName = Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"]
"""The types of blocks."""
ANY = "any"
"""The grid of a method whose type is chosen for each matrix."""
SIZES: tuple[BlockGridName, ...] = (
    "q2_k", "q3_k", "q4_0", "iq4_nl", "q4_k", "q4_1", "q5_0", "q5_k", "q5_1", "q6_k", "q8_0",
)  # fmt: skip
"""Every type from the smallest to the largest; of types of one size, that with the smallest error is the last."""
LEAST_COLUMNS = 32
"""The columns of the smallest blocks."""
NARROWER: dict[str, BlockGridName] = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""The type with blocks of 32 columns that llama.cpp's quantizer takes where blocks of 256 do not fit.

Source: `tensor_type_fallback` of src/llama-quant.cpp in llama.cpp.
"""
FREE = ("grid", "act_order", "damping", "shrink")
"""Parameters that do not contradict a grid."""


@dataclass(frozen=True, kw_only=True)
class BlockQuantization(AffineQuantization):
    """A method that rounds to evenly spaced values with scales of its own, or with those of llama.cpp's blocks.

    Args:
        grid: the type of the blocks, in place of bits and group_size, for a file that llama.cpp reads. The matrix is
            fitted and rounded to the numbers that llama.cpp computes with, scales of 4 to 8 bits included. Rows must
            have a multiple of 32 columns. For a type that ends in `_k` they need a multiple of 256; a step gives
            other matrices the type that llama.cpp's own quantizer takes there (q4_0 for q2_k and q3_k, q5_0 for q4_k,
            q5_1 for q5_k, q8_0 for q6_k). `any` leaves the type of each matrix to `keep`, and so does a list, such as
            `[q4_0,q8_0]`, which names the types to choose from; with `allocate: spectrum`, the types are those of the
            least predicted loss.

    Raises:
        UserError: a parameter is given that follows from the grid, or the list is empty.
    """

    grid: Literal[BlockGridName, "any"] | tuple[BlockGridName, ...] | None = None

    def __post_init__(self) -> None:
        if self.grid is None:
            return
        if not self.grid:
            raise UserError(f"{self.name}:grid=[] names no type of blocks; give one or more, such as [q4_0,q8_0].")
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if fixed := [name for name in given if name not in FREE]:
            raise UserError(
                f"{self.name}:grid={self._grid_text} sets bits, groups and zero points, and stores every weight; "
                f"leave out {' and '.join(fixed)}, or grid."
            )

    @property
    def code_bits(self) -> int | None:
        if self.grid is None:
            return self.bits
        return None if self._block_type is None else self._block_type.bits

    @property
    def _block_type(self) -> BlockType | None:
        """The type of the blocks; None without a grid, or where it is chosen for each matrix."""
        return BLOCK_TYPES[self.grid] if isinstance(self.grid, str) and self.grid != ANY else None

    @property
    def _chooses(self) -> bool:
        """Whether the type is chosen for each matrix."""
        return self.grid is not None and self._block_type is None

    @property
    def _grid_text(self) -> str:
        """The grid as the command line takes it."""
        return f"[{','.join(self.grid)}]" if isinstance(self.grid, tuple) else str(self.grid)

    @property
    def sizes(self) -> Sequence[QuantizationMethod]:
        if self.grid is None:
            return super().sizes
        return self._types if self._chooses else [self]

    @property
    def _types(self) -> "list[BlockQuantization]":
        """A copy for each type of blocks to choose from."""
        return [replace(self, grid=name) for name in SIZES if self.grid == ANY or name in (self.grid or ())]

    def sizes_for(self, shape: tuple[int, int]) -> Sequence[QuantizationMethod]:
        if not self._chooses:
            return super().sizes_for(shape)
        self._check_width(shape[1])
        fitting = {method.for_shape(shape).grid for method in self._types}
        return [replace(self, grid=name) for name in SIZES if name in fitting]

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        if not self._chooses:
            return super().candidates(weight, stats)
        return sampled_candidates(weight, stats, self.sizes_for((weight.shape[0], weight.shape[1])))

    def without_size(self) -> QuantizationMethod:
        return super().without_size() if self.grid is None else self

    @property
    def fills_zeros(self) -> bool:
        return self.grid is not None

    @property
    def stores_rows(self) -> bool:
        return self.grid is not None

    def for_shape(self, shape: tuple[int, int]) -> "BlockQuantization":
        narrower = self._narrower
        if narrower is None or self.shape_error(shape, "") is None:
            return self
        other = replace(self, grid=narrower)
        return self if other.shape_error(shape, "") else other

    def shape_error(self, shape: tuple[int, int], matrix: str) -> UserError | None:
        columns, other = self._columns, self._narrower
        if columns is None or shape[1] % columns == 0:
            return None
        remedy = "give bits and group_size in place of grid there"
        if other is not None and shape[1] % BLOCK_TYPES[other].columns == 0:
            remedy = f"give grid={other} there"
        return UserError(
            f"{self.name}:grid={self._grid_text} needs rows of a multiple of {columns} columns; "
            f"{matrix} has {shape[1]}: {remedy}, or choose other targets."
        )

    @property
    def _narrower(self) -> BlockGridName | None:
        """The type that stands for this one where its blocks do not fit; None if there is none."""
        return None if self._block_type is None else NARROWER.get(self._block_type.name)

    @property
    def _columns(self) -> int | None:
        """The number of columns that rows have a multiple of; None for any number."""
        if self.grid is None:
            return None
        return LEAST_COLUMNS if self._block_type is None else self._block_type.columns

    def empty_codes(self, bits: int, shape: tuple[int, int], kept: int | None) -> PackedCodes:
        if self.grid is None:
            return super().empty_codes(bits, shape, kept)
        if self._block_type is None:
            return self.sizes_for(shape)[0].empty_codes(bits, shape, kept)
        self._check_width(shape[1])
        return GgmlBlocks(shape, self._block_type.name)

    def quantizer_spec(self, bits: int, width: int, mask: Bool[Tensor, "out in"] | None) -> QuantizerSpec:
        """The specification of the quantizer of a matrix of `width` columns; `mask` is False at pruned weights.

        Raises:
            UserError: the blocks of the grid do not fit the width, or cannot leave out pruned weights.
        """
        if self.grid is None:
            return self.grid_spec(bits, width)
        assert self._block_type is not None, "a size was chosen"
        self._check_width(width)
        if mask is not None:
            raise UserError(
                f"{self.name}:grid={self._grid_text} stores every weight and would fill the zeros of a pruned matrix; "
                "give bits in place of grid, or do not prune."
            )
        return self._block_type

    def _check_width(self, width: int) -> None:
        if error := self.shape_error((1, width), "a matrix"):
            raise error

    def to_quantized(
        self, result: QuantizedWeight, dtype: torch.dtype, support: Bool[Tensor, "out in"] | None
    ) -> PackedCodes:
        if self.grid is None:
            return super().to_quantized(result, dtype, support)
        assert result.blocks is not None and self._block_type is not None
        return GgmlBlocks.from_codes(result.codes, result.blocks, self._block_type.name, dtype)
