"""Quantizers of a matrix in one form: laconic's own affine grids, and those that llama.cpp's blocks can hold.

A specification is fitted to a matrix. The result rounds as an affine grid s (c − z) does, so that a sweep with
compensation need not know which of the two it is, and holds what is stored.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from laconic.numerics.ggml_blocks import BlockScales, BlockType
from laconic.numerics.ggml_fit import BlockGrid, fit_blocks
from laconic.numerics.grid import Grid, GridSpec, QuantizedWeight, fit_grid, quantize

QuantizerSpec = GridSpec | BlockType
"""The specification of a quantizer: bits and groups, or a type of blocks."""
Quantizer = Grid | BlockGrid
"""A quantizer that was fitted to a matrix."""
T = TypeVar("T", Grid, BlockScales)


def fit_quantizer(
    W: Float[Tensor, "out in"],
    spec: QuantizerSpec,
    importance: Float[Tensor, "..."] | None = None,
    keep: Bool[Tensor, "out in"] | None = None,
) -> Quantizer:
    """The scales of least error for a matrix.

    Args:
        W: the matrix.
        spec: the specification.
        importance: h of each column or of each weight; None if the inputs are unknown.
        keep: False at pruned weights, which blocks cannot have; None if nothing was pruned.

    Raises:
        ValueError: the blocks do not fit the width, or weights are pruned.

    Example:
        >>> grid = fit_quantizer(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), GridSpec(bits=2, group=4, clip=False))
        >>> affine_grid(grid).scale
        tensor([[1.]])
    """
    if isinstance(spec, GridSpec):
        return fit_grid(W, spec, importance, keep)
    if keep is not None:
        raise ValueError(f"blocks of {spec.name} store every weight, so none can be pruned")
    return fit_blocks(W, spec, importance)


def affine_grid(quantizer: Quantizer) -> Grid:
    """The values to round to, as s (c − z)."""
    return quantizer.affine if isinstance(quantizer, BlockGrid) else quantizer


def with_codes(codes: Integer[Tensor, "out in"], quantizer: Quantizer) -> QuantizedWeight:
    """The quantized matrix of these codes."""
    blocks = quantizer.scales if isinstance(quantizer, BlockGrid) else None
    return QuantizedWeight(codes, affine_grid(quantizer), blocks)


def nearest(
    W: Float[Tensor, "out in"],
    spec: QuantizerSpec,
    importance: Float[Tensor, "..."] | None = None,
    keep: Bool[Tensor, "out in"] | None = None,
) -> QuantizedWeight:
    """Fit the scales to a matrix and round every weight to the nearest value; arguments as of `fit_quantizer`.

    Example:
        >>> nearest(torch.tensor([[0.0, 1.1, 1.9, 3.0]]), GridSpec(bits=2, group=4, clip=False)).codes
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    """
    quantizer = fit_quantizer(W, spec, importance, keep)
    return with_codes(quantize(W, affine_grid(quantizer)), quantizer)


def columns_together(spec: QuantizerSpec) -> int | None:
    """Columns of a row whose scales are fitted together; None if the whole matrix shares one.

    Example:
        >>> from laconic.numerics.ggml_blocks import BLOCK_TYPES
        >>> columns_together(BLOCK_TYPES["q4_k"]), columns_together(GridSpec(bits=4, group=64))
        (256, 64)
    """
    return spec.group if isinstance(spec, GridSpec) else spec.columns


def join(quantizers: Sequence[Quantizer], axis: int) -> Quantizer:
    """Quantizers of parts of a matrix as one.

    Args:
        quantizers: those of some rows after another (axis 0), or of some columns (axis 1).
        axis: 0 or 1.

    Example:
        >>> half = Grid(torch.ones(1, 1), torch.zeros(1, 1), bits=2, group=4)
        >>> join([half, half], axis=1).scale.shape
        torch.Size([1, 2])
    """
    first = quantizers[0]
    if isinstance(first, Grid):
        return _map(lambda *parts: torch.cat(parts, axis), *(one for one in quantizers if isinstance(one, Grid)))
    blocks = [one.scales for one in quantizers if isinstance(one, BlockGrid)]
    return first._replace(scales=_map(lambda *parts: torch.cat(parts, axis), *blocks))


def choose_rows(which: Bool[Tensor, " out"], first: Quantizer, second: Quantizer) -> Quantizer:
    """The rows of the first quantizer where `which` is True, and those of the second elsewhere.

    Example:
        >>> low, high = (Grid(torch.full((2, 1), s), torch.zeros(2, 1), bits=2, group=4) for s in (1.0, 2.0))
        >>> choose_rows(torch.tensor([True, False]), low, high).scale.tolist()
        [[1.0], [2.0]]
    """

    def choose(mine: Tensor, other: Tensor) -> Tensor:
        return torch.where(which[:, None], mine, other)

    if isinstance(first, Grid) and isinstance(second, Grid):
        return _map(choose, first, second)
    assert isinstance(first, BlockGrid) and isinstance(second, BlockGrid)
    return first._replace(scales=_map(choose, first.scales, second.scales))


def _map(function: Callable[..., Tensor], *parts: T) -> T:
    """The first of the tuples, with each tensor replaced by a function of this tensor and those of the others."""
    tensors = {
        name: function(*own) for name, *own in zip(parts[0]._fields, *parts, strict=True) if isinstance(own[0], Tensor)
    }
    return parts[0]._replace(**tensors)
