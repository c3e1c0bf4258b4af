"""One sweep over the columns of a matrix: each is rounded, and later columns compensate for its errors.

With H = R D R^T, R upper triangular with ones on the diagonal, and E = W − Ŵ, the loss is

    ½ tr(E H E^T) = ½ Σ_q D_q ‖w_q + Σ_{k<q} R_kq e_k − ŵ_q‖²,

so column q is rounded to the grid values nearest to w_q plus the terms of earlier errors. These are the weights that
GPTQ arrives at with the factor U of H^{-1} = U^T U (J. Chee et al., "QuIP: 2-Bit Quantization of Large Language Models
With Guarantees", NeurIPS 2023, arXiv 2307.13304, theorem 6). The errors e are differences of stored numbers, and each
weight is computed anew from them, so nothing adds up along the sweep and fp32 is exact enough. The terms of errors of
columns far before are computed in bfloat16 where that is faster and changes the loss little enough (`coarsen`).

Notation: W (m, n), stored transposed, (n, m), so that a column is contiguous, and in the order of the sweep.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from laconic.numerics.grid import Grid
from laconic.numerics.rounding import round_steps_, step_codes
from laconic.numerics.triangle import Triangle

BLOCK = 128
"""Number of columns that get the terms of all errors before them in one matrix product."""
STRIP = 32
"""Number of columns of a block that get the terms of its earlier columns in one matrix product."""
FEW = 8
"""Number of columns of a strip that share a view of its errors. Making a view for each would take as long as the sums.
"""
COARSE_FROM = 512
"""The least number of columns of a matrix whose terms may be computed in bfloat16."""
COARSE_COST = 1e-3
"""The largest part of the loss that rounding to bfloat16 may add."""

GridRow = tuple[Tensor, Tensor, Tensor]
"""The inverse scale, the zero point and the scale of the weights of one column."""
GridRows = Callable[[slice], Iterable[GridRow]]
"""Returns the grids of some columns, one after another."""


class WeightGrids(NamedTuple):
    """The grid of every single weight, in fp32. With a scale of 0, the only value of a weight is 0.

    Args:
        scale: s of each weight.
        inverse: 1 / s, or 0.
        zero: z of each weight.
        bits: bits of a code.

    Example:
        >>> grid = Grid(torch.tensor([[2.0]]), torch.tensor([[1.0]]), bits=2, group=2)
        >>> WeightGrids.from_grid(grid, torch.arange(2), mask=torch.tensor([[True, False]])).scale
        tensor([[2., 0.]])
    """

    scale: Float[Tensor, "#out #in"]
    inverse: Float[Tensor, "#out #in"]
    zero: Float[Tensor, "#out #in"]
    bits: int

    @classmethod
    def from_grid(
        cls, grid: Grid, columns: Integer[Tensor, " some"], mask: Bool[Tensor, "out in"] | None
    ) -> "WeightGrids":
        """The grids of some columns.

        Args:
            grid: the grids of the matrix.
            columns: numbers of the columns.
            mask: False at weights that are to be 0, in the order of the matrix; None to prune none.
        """
        scale, zero = (part.float() for part in grid.scale_and_zero(columns))
        if mask is not None:
            scale = scale * mask[:, columns]
        return cls(scale, torch.where(scale == 0, 0, 1 / scale), zero, grid.bits)

    def take_rows(self, rows: Integer[Tensor, " some"]) -> "WeightGrids":
        """The grids of some rows."""
        return self._map(lambda part: part[rows] if len(part) > 1 else part)

    def expand_rows(self, rows: int) -> "WeightGrids":
        """The same grids, repeated for `rows` rows if they have only one."""
        return self._map(lambda part: part.expand(rows, -1))

    def rows(self, some: slice) -> Iterator[GridRow]:
        """The grids of some rows, one after another."""
        return zip(self.inverse[some], self.zero[some], self.scale[some], strict=True)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "WeightGrids":
        return WeightGrids(function(self.scale), function(self.inverse), function(self.zero), self.bits)


def columns_of(grid: Grid, columns: Integer[Tensor, " n"], mask: Bool[Tensor, "out in"] | None) -> GridRows:
    """The grids of the columns of a matrix, for a sweep. Columns of a group share theirs.

    Args:
        grid: the grids of the matrix.
        columns: numbers of all columns in the order of the sweep.
        mask: False at weights that are to be 0, in the order of the matrix; None to prune none.
    """
    groups = torch.zeros_like(columns) if grid.group is None else columns // grid.group
    scale, zero = (part.float().T.contiguous() for part in grid[:2])
    shared = WeightGrids(scale, torch.where(scale == 0, 0, 1 / scale), zero, grid.bits)
    by_group = list(shared.rows(slice(None)))

    def rows(some: slice) -> Iterator[GridRow]:
        own = (by_group[group] for group in groups[some].tolist())
        if mask is None:
            return own
        kept = mask[:, columns[some]].T.float()
        return ((inverse * keep, zero, scale * keep) for keep, (inverse, zero, scale) in zip(kept, own, strict=True))

    return rows


def coarsen(R: Triangle, D: Float[Tensor, " n"]) -> Triangle:
    """R as sweeps use it: of many columns in fp32, the rows above the corners in bfloat16 where that is exact enough.

    Rounding to bfloat16 changes a number by up to ε = 2⁻⁸ of its size, by a variance of about ε² / 6. R, the errors and
    their products are rounded. If the errors of all columns have the size e, this changes the terms of column q by a
    variance of about ½ ε² e² Σ_k R_kq² over the rows k above the corner, beside its own error of e². The loss grows by
    as much, each column times D_q.

    Args:
        R: the unit factor.
        D: the cost of an error of each column.

    Returns:
        R in fp32 if bfloat16 is not faster, or adds more than COARSE_COST of the loss; R itself if it has few columns.
    """
    if len(R) < COARSE_FROM:
        return R
    if not _multiplies_bfloat16(D.device):
        return R.to(torch.float32)
    squares = torch.cat([above.square().sum(0) for above in R.above])
    variance = (torch.finfo(torch.bfloat16).eps / 2) ** 2 / 2
    exact_enough = bool(variance * (D @ squares.double()) <= COARSE_COST * D.sum())
    return R.to(torch.float32, above=torch.bfloat16 if exact_enough else None)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions that multiply matrices in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Releases of torch before 2.12 have no such function.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


class ColumnSweep:
    """A sweep over the columns of one matrix, which can be repeated with other grids.

    Args:
        Wt: the transposed matrix, in the order of the sweep.
        R: unit factor of the reordered H.

    Example:
        Half of the first error is added to the second column before it is rounded.

        >>> R = Triangle.from_dense(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
        >>> sweep = ColumnSweep(torch.tensor([[0.4], [0.4]]), R)
        >>> grids = columns_of(Grid(torch.ones(1, 1), torch.zeros(1, 1), 2, None), torch.arange(2), None)
        >>> sweep.round(slice(0, 2), grids, bits=2).T.tolist(), sweep.compensated.T.tolist()
        ([[0, 1]], [[0.4000000059604645, 0.6000000238418579]])
    """

    def __init__(self, Wt: Float[Tensor, "in out"], R: Triangle) -> None:
        self.Wt, self._R = Wt, R if R.is_coarse else R.to(Wt.dtype)
        self.compensated = torch.empty_like(Wt)
        """The weights at the moment they were rounded, (in, out)."""
        self._errors = torch.empty_like(Wt)
        self._coarse_errors = torch.empty_like(Wt, dtype=R.above[0].dtype) if R.is_coarse else None

    def arriving(self, columns: slice) -> Float[Tensor, "some out"]:
        """Some of the columns after the best compensation for all errors before the first of them.

        Args:
            columns: the columns; all before them are rounded.
        """
        weights, terms = self.Wt[columns], torch.zeros_like(self.Wt[columns])
        if columns.start == 0:
            return weights
        self._add_terms(terms, columns)
        R = self._R.part(columns, columns)
        return weights + torch.linalg.solve_triangular(R.T, terms, upper=False, unitriangular=True)

    @torch.no_grad()
    def round(self, columns: slice, grids: GridRows, bits: int, uneven: bool = False) -> UInt8[Tensor, "some out"]:
        """Round some columns; all before them are rounded.

        Args:
            columns: the columns.
            grids: returns the grids of a part of them; the first of them is column 0.
            bits: bits of a code.
            uneven: whether the steps are the uneven ones of `iq4_nl`.

        Returns:
            The codes.
        """
        codes = self.Wt.new_empty((columns.stop - columns.start, self.Wt.shape[1]), dtype=torch.uint8)
        for part in _parts(len(codes), BLOCK):
            block = slice(columns.start + part.start, columns.start + part.stop)
            weights, present, errors = self.Wt[block], self.compensated[block], self._errors[block]
            self._add_terms(present.copy_(weights), block)
            R = self._R.part(block, block)
            steps = _round_block((weights, present, errors), R, grids(part), (bits, uneven))
            codes[part] = step_codes(steps, uneven)
            if self._coarse_errors is not None:
                self._coarse_errors[block] = errors
        return codes

    def _add_terms(self, present: Float[Tensor, "some out"], columns: slice) -> None:
        """Add the terms of the errors of all columns before some columns."""
        distant = self._errors if self._coarse_errors is None else self._coarse_errors
        for own, above, corner in self._R.panels:
            some = slice(max(own.start, columns.start), min(own.stop, columns.stop))
            if some.start >= some.stop:
                continue
            inside, target = slice(some.start - own.start, some.stop - own.start), present[some.start - columns.start :]
            target = target[: some.stop - some.start]
            before, near = min(own.start, columns.start), slice(own.start, columns.start)
            if before:
                target += above[:before, inside].T @ distant[:before]
            if near.start < near.stop:
                target.addmm_(corner[: near.stop - near.start, inside].T, self._errors[near])

    def losses(self, D: Float[Tensor, " in"]) -> Float[Tensor, " out"]:
        """Σ_q D_q (w_q − ŵ_q)² of every row of W after a whole sweep, in fp64; the sums of blocks are in fp32.

        Args:
            D: the diagonal of the middle factor of H.
        """
        level = D.mean()
        parts = (part.split(BLOCK) for part in (self.compensated, self.Wt, self._errors, (D / level).to(self.Wt)))
        sums = [d @ torch.sub(w, W).add_(E).square_() for w, W, E, d in zip(*parts, strict=True)]
        return torch.stack(sums).double().sum(0).mul_(level)


def _round_block(
    columns: tuple[Tensor, Tensor, Tensor],
    R: Float[Tensor, "block block"],
    grids: Iterable[GridRow],
    kind: tuple[int, bool],
) -> Float[Tensor, "block out"]:
    """Round the columns of one block.

    Args:
        columns: the weights; these plus the terms of the blocks before, changed to the compensated weights; and W − Ŵ,
            written.
        R: the part of the unit factor.
        grids: the grids of the block.
        kind: bits of a code, and whether the steps are uneven.

    Returns:
        The steps, which are the codes unless they are uneven.
    """
    Wt, present, errors = columns
    codes, factors = torch.empty_like(Wt), R.T.tril(-1)
    rows = zip(Wt.unbind(), present.unbind(), errors.unbind(), codes.unbind(), grids, strict=True)
    for strip in _parts(len(Wt), STRIP):
        if strip.start:
            present[strip].addmm_(factors[strip, : strip.start], errors[: strip.start])
        own, inside = errors[strip].zero_().T, factors[strip, strip]
        for few in _parts(strip.stop - strip.start, FEW):
            # These columns share a view of the errors: those that are not known yet are 0, and so are their factors.
            before, terms = own[:, : few.stop], inside[few, : few.stop].unbind()
            # The factors come first: zip stops there, before it takes a row of the next columns.
            for factor, (w, met, error, code, (inverse, zero, scale)) in zip(terms, rows, strict=False):
                met.addmv_(before, factor)
                round_steps_(torch.addcmul(zero, met, inverse, out=code), *kind)
                torch.addcmul(w, torch.sub(code, zero, out=error), scale, value=-1, out=error)
    return codes


def _parts(length: int, most: int) -> list[slice]:
    """Slices of at most `most` numbers, up to `length`."""
    return [slice(start, min(start + most, length)) for start in range(0, length, most)]
