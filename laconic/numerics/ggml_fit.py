"""The scales of llama.cpp's blocks for a matrix: of least error among those that a block can hold.

A weight of a group is one of the values d σ q − d_min μ (`laconic.numerics.ggml_blocks`), so a group has the scale s =
d σ and the minimum t = d_min μ. First each group gets the s and t of least error by itself (`laconic.numerics.grid`).
Blocks of one group round them to 16 bits. In blocks of many groups, two things are found in turn:

    d and d_min fixed:      each group takes, among integers near the present ones, the σ and μ of least error;
    σ, μ and codes fixed:   each block takes the d and d_min of least error, rounded to 16 bits.

With codes fixed the weights are linear in p = (s, t): they are B p with B = (q, −1). With v = B^T H w the least of

    (w − B p)^T H (w − B p) + (a − 1) (w^T H (w − B p))² / w^T H w    solves
    (B^T H B + (a − 1) v v^T / w^T H w) p = a v,

where H = diag h. The second term is there if the inputs are unknown, as in `laconic.numerics.grid`. For d and d_min the
same equations, with B = (σ q, −μ), are summed over the groups of a block.

Notation: W (m, n); h importance of each weight; s, t, σ, μ (k,) of each group; d, d_min of each block.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.numerics.ggml_blocks import BlockScales, BlockType, group_scales
from laconic.numerics.ggml_uneven import fit_uneven
from laconic.numerics.grid import ALONG, BLOCK, Grid, GridSpec, fit_grid, weigh_groups
from laconic.numerics.grid_search import LARGEST_SCALE, Groups, invert, round_scale

TURNS = 4
"""Rounds of fitting the scales and minima of groups and those of blocks in turn."""
NEAR = (0, -1, 1)
"""Changes of the integers of a group that the search for better ones tries."""
SHIFTS = (0, -1 / 2, -1 / 4, 1 / 4, 1 / 2)
"""Changes of the minimum of a group, in steps, that the search for a better one tries."""
LEAST_DETERMINANT = 1e-9
"""The smallest determinant of two equations that are solved, relative to the product of their diagonal."""


class BlockGrid(NamedTuple):
    """The grids of a matrix whose values llama.cpp's blocks can hold.

    Args:
        kind: the type of the blocks.
        scales: the scales of the blocks.

    Example:
        >>> from laconic.numerics.ggml_blocks import BLOCK_TYPES
        >>> grid = fit_blocks(torch.arange(-8.0, 24.0)[None] / 2, BLOCK_TYPES["q5_0"])
        >>> grid.affine.scale.shape, grid.affine.zero.item()
        (torch.Size([1, 1]), 16.0)
    """

    kind: BlockType
    scales: BlockScales

    @property
    def affine(self) -> Grid:
        """The same values as s (c − z), to round to them. A zero point is any number, and where σ = 0 it is 0."""
        scale, minimum = group_scales(self.scales)
        zero = torch.full_like(scale, self.kind.offset) if minimum is None else minimum * invert(scale)
        return Grid(scale, zero, self.kind.bits, self.kind.group, self.kind.uneven)


@torch.no_grad()
def fit_blocks(
    W: Float[Tensor, "out in"], kind: BlockType, importance: Float[Tensor, "..."] | None = None
) -> BlockGrid:
    """The scales of least error for a matrix. In fp32.

    Args:
        W: the matrix; its width is a multiple of the columns of a block.
        kind: the type of the blocks.
        importance: h of each column or of each weight; None if the inputs are unknown.

    Raises:
        ValueError: the width does not fit.
    """
    kind.row_nbytes(W.shape[1])
    h = torch.ones((), device=W.device)
    if importance is not None and importance.max() > 0:
        h = (importance / importance.max()).float()
    h, along = h.expand_as(W), ALONG if importance is None else 1.0
    spec = GridSpec(kind.bits, kind.group, symmetric=not kind.has_minimum)
    parts = []
    for start in range(0, len(W), height := max(1, BLOCK // W.shape[1])):
        rows = slice(start, start + height)
        shaped = [X[rows].float().reshape(-1, kind.group) for X in (W, h)]
        groups = weigh_groups(shaped[0], shaped[1], kind.bits, along)
        if kind.uneven:
            parts.append((fit_uneven(groups).half(), None, None, None))
            continue
        grid = fit_grid(W[rows], spec, None if importance is None else h[rows])
        scale, zero = grid.scale.view(-1), grid.zero.view(-1)
        parts.append(_fit(groups, scale, scale * zero, kind))
    d, m, scales, minima = (
        None if own[0] is None else torch.cat(own).view(len(W), -1) for own in zip(*parts, strict=True)
    )
    assert d is not None
    return BlockGrid(kind, BlockScales(d, m, scales, minima))


def _fit(
    groups: Groups, s: Tensor, t: Tensor, kind: BlockType
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The parts of `BlockScales`, flat, from the s and t that each group has by itself."""
    if kind.has_minimum:
        s, t = _refine(groups, s, t, kind)
    if kind.scale_bits is None:
        return s.half(), -t.half() if kind.has_minimum else None, None, None
    return _SuperBlocks(groups, kind).fit(s, t)


def _refine(groups: Groups, s: Tensor, t: Tensor, kind: BlockType) -> tuple[Tensor, Tensor]:
    """s and t of less error, in 16 bits: t is shifted by parts of a step, then both are refined for nearest codes."""
    best, result = torch.full_like(s, torch.inf), torch.stack([s, t])
    for shift in SHIFTS:
        present = torch.stack([s, round_scale(t + shift * s)])
        for turn in range(TURNS):
            errors = _errors(groups, present[0], present[1], kind)
            better = errors < best
            result, best = torch.where(better, present, result), torch.where(better, errors, best)
            if turn + 1 < TURNS:
                system = _equations(groups, present[0], present[1], kind)
                present = round_scale(_solve(*system, present.T, groups.along).T.float())
    return result[0], result[1]


def _zero_points(s: Tensor, t: Tensor, kind: BlockType) -> Tensor:
    return t * invert(s) if kind.has_minimum else torch.full_like(s, kind.offset)


def _errors(groups: Groups, s: Tensor, t: Tensor, kind: BlockType) -> Float[Tensor, " groups"]:
    """The error of each group; where s is 0, that of zeros."""
    errors = groups.errors_of((s, _zero_points(s, t, kind)), kind.bits)
    return torch.where(s == 0, groups.along * groups.size, errors)


def _equations(
    groups: Groups, s: Tensor, t: Tensor, kind: BlockType
) -> tuple[Float[Tensor, "groups 2 2"], Float[Tensor, "groups 2"]]:
    """B^T H B + (a − 1) v v^T / w^T H w and v of each group, for the codes nearest at s and t. In fp64."""
    codes, _ = groups.offsets(invert(s), _zero_points(s, t, kind), kind.bits)
    q = codes.sub_(kind.offset)
    sums = [groups.weigh(factor).mul_(other).sum(1).double() for factor, other in ((q, q), (q, groups.W))]
    hq, h, hw = (part.sum(1).double() for part in (groups.weigh(q), groups.h, groups.weigh(groups.W)))
    moment = torch.stack([sums[0], -hq, -hq, h], 1).view(-1, 2, 2)
    v = torch.stack([sums[1], -hw], 1)
    along = (groups.along - 1) / groups.size.double()
    return moment + along[:, None, None] * v[:, :, None] * v[:, None, :], v


def _solve(A: Tensor, v: Tensor, present: Tensor, along: float) -> Float[Tensor, "n 2"]:
    """The solution of A p = a v; where A is singular, the first unknown alone for the present second one."""
    v, present = along * v, present.double()
    (a, b), (_, c) = A[:, 0].unbind(1), A[:, 1].unbind(1)
    determinant = a * c - b * b
    first = (c * v[:, 0] - b * v[:, 1]) / determinant
    second = (a * v[:, 1] - b * v[:, 0]) / determinant
    alone = (v[:, 0] - b * present[:, 1]) / a
    regular = determinant > LEAST_DETERMINANT * a * c
    found = torch.stack([torch.where(regular, first, alone), torch.where(regular, second, present[:, 1])], 1)
    return torch.where(found.isfinite(), found, present)


class _SuperBlocks:
    """The search for the integers of groups and the scales of blocks.

    Args:
        groups: the groups of all blocks.
        kind: the type of the blocks.
    """

    def __init__(self, groups: Groups, kind: BlockType) -> None:
        assert kind.scale_bits is not None
        self.groups, self.kind = groups, kind
        self.low, self.high = (-(2 ** (kind.scale_bits - 1)), 2 ** (kind.scale_bits - 1) - 1)
        if kind.has_minimum:
            self.low, self.high = 0, 2**kind.scale_bits - 1

    def fit(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The parts of `BlockScales`, flat."""
        d, least = self._first(s), self._first(t)
        sigma, mu = self._integers(s, d), self._integers(t, least) if self.kind.has_minimum else torch.zeros_like(s)
        best, result = torch.full_like(d, torch.inf), torch.stack([d, least])
        integers = torch.stack([sigma, mu])
        for turn in range(TURNS):
            sigma, mu, errors = self._choose(d, least, sigma, mu)
            block_errors = errors.view(len(d), -1).sum(1)
            better = block_errors < best
            best = torch.where(better, block_errors, best)
            result = torch.where(better, torch.stack([d, least]), result)
            integers = torch.where(better.repeat_interleave(self.kind.groups), torch.stack([sigma, mu]), integers)
            if turn + 1 < TURNS:
                d, least = self._fit_blocks(d, least, sigma, mu)
        scales, minima = integers.to(torch.int16)
        if self.kind.has_minimum:
            return result[0].half(), result[1].half(), scales, minima
        return result[0].half(), None, scales, None

    def _first(self, numbers: Tensor) -> Tensor:
        """The scale of each block with which the largest number of its groups gets the outermost integer."""
        rows = numbers.view(-1, self.kind.groups)
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))[:, 0]
        return round_scale(largest / (self.low or self.high))

    def _integers(self, numbers: Tensor, unit: Tensor) -> Tensor:
        return (numbers * invert(self._spread(unit))).round().clamp(self.low, self.high)

    def _spread(self, numbers: Tensor) -> Tensor:
        """A number of each block, for each of its groups."""
        return numbers.repeat_interleave(self.kind.groups)

    def _choose(self, d: Tensor, least: Tensor, sigma: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The σ and μ of least error among those near the present ones, and the error of each group."""
        s_unit, t_unit = self._spread(d), self._spread(least)
        best, result = torch.full_like(sigma, torch.inf), torch.stack([sigma, mu])
        for above, beside in product(NEAR, NEAR if self.kind.has_minimum else (0,)):
            candidate = torch.stack([sigma + above, mu + beside]).clamp(self.low, self.high)
            errors = _errors(self.groups, s_unit * candidate[0], t_unit * candidate[1], self.kind)
            # A group whose scale is 0 would have the value −t throughout.
            candidate[1] = torch.where(candidate[0] * s_unit == 0, 0, candidate[1])
            better = errors < best
            result = torch.where(better, candidate, result)
            best = torch.where(better, errors, best)
        return result[0], result[1], best

    def _fit_blocks(self, d: Tensor, least: Tensor, sigma: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """d and d_min of least error for the present integers and codes."""
        A, v = _equations(self.groups, self._spread(d) * sigma, self._spread(least) * mu, self.kind)
        factors = torch.stack([sigma, mu], 1).double()
        A = (A * factors[:, :, None] * factors[:, None, :]).view(len(d), -1, 2, 2).sum(1)
        v = (v * factors).view(len(d), -1, 2).sum(1)
        present = torch.stack([d, least], 1)
        solved = _solve(A, v, present, self.groups.along).float()
        # Integers of types with a minimum have no sign.
        usable = solved.abs() < LARGEST_SCALE
        if self.kind.has_minimum:
            usable &= solved > 0
        d, least = round_scale(torch.where(usable, solved, present)).unbind(1)
        return d, least
