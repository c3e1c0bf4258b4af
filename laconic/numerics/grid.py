"""Affine quantization grids: the scale and zero point of each group of weights, and rounding to the nearest value.

A weight w of a group with the scale s and the zero point z is stored as the code c in [0, 2^b), which stands for
s (c − z). An asymmetric grid chooses z among the codes. A symmetric one has z = 2^{b−1} everywhere, and as there is one
more code below than above, s may be negative. s is rounded to 16 bits, as it will be stored.

The scale is found by search: among ranges from the whole span of a group down to a part of it, the one with the least
error is taken, and then, with its codes fixed, the s of least error (clipping: J. Lin et al., "AWQ", MLSys 2024, arXiv
2306.00978, section 5.1). With e_j = w_j − s (c_j − z), the error is

    Σ h_j e_j²                                             where the importance h of the inputs is given,
    Σ h_j e_j² + (a − 1) (Σ h_j e_j w_j)² / Σ h_j w_j²,    where it is not and ranges are searched: a = 2, h_j = 1, but
                                                           with 2 bits h_j = |w_j| + the root mean square of the group.

With h = 1 and without the second term this is the output error for inputs with the same second moment in every
direction. It favours clipping. Clipped weights shrink, so their error points along w. In a trained layer the inputs are
most active along w: their second moment there is taken to be a times as large as in other directions. Without the
second term matrices would shrink as a whole, and their outputs would be too small. With 2 bits most of the range would
be clipped, so large weights get a larger h_j, as in llama.cpp's format Q2_K, which takes h_j = |w_j|.

If the inputs are unknown and there are 4 bits or more, the range is narrowed only if that saves a fraction m = 0.3 of
the error of the whole range. Clipping helps many weights a little, and hurts the few largest ones, whose inputs were
not measured. With 2 and 3 bits the steps are so wide that clipping pays in any case.

Notation: W (m, n); h importance, (n,) or (m, n); b bits; s, z (m, k), or (1, 1) where the whole matrix is one group.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn.functional import pad

from laconic.numerics.ggml_blocks import BlockScales
from laconic.numerics.grid_search import Groups, search
from laconic.numerics.rounding import code_steps, round_steps_, step_codes
from laconic.numerics.scaled_rows import scale_rows

ALONG = 2.0
"""a: second moment of unknown inputs along the weights that read them, relative to that across them."""
MARGIN = 0.3
"""m: the fraction of the full range's error that clipping must save, where inputs are unknown."""
MARGIN_BITS = 4
"""The least number of bits to which the margin m applies."""
WEIGHED_BITS = 2
"""The most bits with which h_j = |w_j| + the root mean square of the group."""
BLOCK = 2**18
"""Weights that are processed at a time, unless one grid serves the whole matrix."""


class GridSpec(NamedTuple):
    """Specification of the grids of one matrix.

    Args:
        bits: b, bits of a code.
        group: columns of a row that share a grid, the last group being shorter where needed; None for one grid in all.
        symmetric: the zero point is 2^{b−1} everywhere.
        clip: search for the range; otherwise it is the whole span of the group.

    Example:
        >>> GridSpec(bits=4, group=64)
        GridSpec(bits=4, group=64, symmetric=False, clip=True)
    """

    bits: int
    group: int | None
    symmetric: bool = False
    clip: bool = True


class Grid(NamedTuple):
    """The grids of one matrix.

    Args:
        scale: s of each group of each row, (1, 1) where the whole matrix is one group.
        zero: z, of the same shape.
        bits: b.
        group: columns of a row that share a grid; None if the whole matrix is one group.
        uneven: whether c − z is one of the uneven steps of `iq4_nl` instead, where z is 0.

    Example:
        >>> grid = Grid(torch.tensor([[0.5, 2.0]]), torch.zeros(1, 2), bits=2, group=3)
        >>> grid.scale_and_zero(torch.tensor([0, 3]))[0]
        tensor([[0.5000, 2.0000]])
    """

    scale: Float[Tensor, "rows groups"]
    zero: Float[Tensor, "rows groups"]
    bits: int
    group: int | None
    uneven: bool = False

    def scale_and_zero(self, which: Integer[Tensor, " k"]) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows k"]]:
        """s and z of some columns; one row where all rows have the same."""
        if self.group is None:
            return self.scale.expand(1, len(which)), self.zero.expand(1, len(which))
        groups = which // self.group
        return self.scale[:, groups], self.zero[:, groups]


class QuantizedWeight(NamedTuple):
    """A quantized matrix.

    Args:
        codes: the code of every weight, uint8.
        grid: the scales and zero points that the codes refer to.
        blocks: the same as scales of llama.cpp's blocks; None if they are not stored in blocks.
    """

    codes: Integer[Tensor, "out in"]
    grid: Grid
    blocks: BlockScales | None = None


@torch.no_grad()
def fit_grid(
    W: Float[Tensor, "out in"],
    spec: GridSpec,
    importance: Float[Tensor, "..."] | None = None,
    keep: Bool[Tensor, "out in"] | None = None,
) -> Grid:
    """The grids of least error for a matrix. In fp32.

    Args:
        W: the matrix.
        spec: bits, group and kind of the grids.
        importance: h of each column or of each weight; None if the inputs are unknown.
        keep: False at pruned weights, which do not count; None if nothing was pruned.

    Example:
        >>> grid = fit_grid(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), GridSpec(bits=2, group=4, clip=False))
        >>> grid.scale.item(), abs(grid.zero.item())
        (1.0, 0.0)
    """
    # Without a search for the range only the sign of a symmetric scale is chosen.
    along = ALONG if importance is None and spec.clip else 1.0
    h = torch.ones((), device=W.device)
    if importance is not None and importance.max() > 0:
        h = (importance / importance.max()).float()
    h, group = h.expand_as(W), spec.group
    groups = 1 if group is None else -(-W.shape[1] // group)
    short = 0 if group is None else groups * group - W.shape[1]
    parts = []
    for start in range(0, len(W), height := len(W) if group is None else max(1, BLOCK // (groups * group))):
        block = slice(start, start + height)
        kept = [X[block].float() if keep is None else X[block].float() * keep[block] for X in (W, h)]
        shaped = [X.reshape(1, -1) if group is None else pad(X, (0, short)).reshape(-1, group) for X in kept]
        parts.append(_fit(shaped[0], shaped[1], spec, along))
    scale, zero = (torch.cat(part).view(-1, groups) for part in zip(*parts, strict=True))
    return Grid(scale, zero, spec.bits, group)


def nearest_codes(
    W: Float[Tensor, "out columns"],
    scale: Float[Tensor, "#out #columns"],
    zero: Float[Tensor, "#out #columns"],
    bits: int,
    uneven: bool = False,
) -> Float[Tensor, "out columns"]:
    """The nearest steps, which are codes unless they are uneven, in the dtype of W; z where the scale is zero.

    Example:
        >>> nearest_codes(torch.tensor([[0.2, 0.9]]), torch.tensor([[0.5]]), torch.zeros(1, 1), bits=2)
        tensor([[0., 2.]])
    """
    inverse = torch.where(scale == 0, 0, 1 / scale)
    return round_steps_(W * inverse + zero, bits, uneven)


def quantize(W: Float[Tensor, "out in"], grid: Grid) -> Integer[Tensor, "out in"]:
    """The code of the nearest value of each weight, uint8.

    Args:
        W: the matrix.
        grid: its grids.

    Example:
        >>> grid = Grid(torch.ones(1, 1), torch.zeros(1, 1), bits=2, group=4)
        >>> quantize(torch.tensor([[0.2, 0.9, 2.2, 7.0]]), grid)
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    """
    columns = torch.arange(W.shape[1], device=W.device)
    parts = [
        step_codes(nearest_codes(W[:, which].float(), *grid.scale_and_zero(which), grid.bits, grid.uneven), grid.uneven)
        for which in columns.split(max(1, BLOCK // len(W)))
    ]
    return torch.cat(parts, 1)


def dequantize(
    codes: Integer[Tensor, "out columns"], grid: Grid, columns: Integer[Tensor, " columns"] | None = None
) -> Float[Tensor, "out columns"]:
    """s (c − z) in fp32, which is exact for scales of 16 bits; s q for uneven steps q.

    Args:
        codes: codes of the whole matrix, or of some of its columns.
        grid: the grids of the matrix.
        columns: which columns they are; None for all.

    Example:
        >>> grid = Grid(torch.tensor([[0.5]]), torch.tensor([[1.0]]), bits=2, group=2)
        >>> dequantize(torch.tensor([[0, 3]]), grid)
        tensor([[-0.5000,  1.0000]])
    """
    m, n = codes.shape
    if columns is None and not grid.uneven and n % (grid.group or n) == 0:
        scale, zero = (numbers.expand(m, -1).reshape(-1) for numbers in grid[:2])
        return scale_rows(codes.reshape(-1, grid.group or n), scale, -scale * zero).view(m, n)
    scale, zero = grid.scale_and_zero(torch.arange(n, device=codes.device) if columns is None else columns)
    return ((code_steps(codes) if grid.uneven else codes) - zero).mul_(scale)


def weigh_groups(
    W: Float[Tensor, "groups weights"], h: Float[Tensor, "groups weights"], bits: int, along: float
) -> Groups:
    """Groups of weights with the importance that an error of each counts with.

    Args:
        W: the weights.
        h: the importance of each; ones, or zeros at pruned weights, if the inputs are unknown.
        bits: bits of a code.
        along: a; 1 if the importance is known.

    Example:
        >>> weigh_groups(torch.tensor([[3.0, 4.0]]), torch.ones(1, 2), bits=4, along=ALONG).size
        tensor([25.])
    """
    if along != 1 and bits <= WEIGHED_BITS:
        h = h * (W.abs() + ((h * W * W).sum(1, keepdim=True) / h.sum(1, keepdim=True).clamp(min=1)).sqrt())
    return Groups.of(W, h, along)


def _fit(
    W: Tensor, h: Tensor, spec: GridSpec, along: float
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
    """s and z of each row."""
    groups = weigh_groups(W, h, spec.bits, along)
    found = search(groups, spec.bits, spec.symmetric, spec.clip)
    if along == 1 or spec.bits < MARGIN_BITS:
        return found
    whole = search(groups._replace(along=1.0), spec.bits, spec.symmetric, clip=False)
    errors = [groups.errors_of(grids, spec.bits) for grids in (found, whole)]
    saved = errors[0] < (1 - MARGIN) * errors[1]
    return torch.where(saved, found[0], whole[0]), torch.where(saved, found[1], whole[1])
