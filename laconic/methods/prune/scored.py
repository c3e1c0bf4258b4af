"""Pruning weight by weight: a sparsity over the whole matrix or over every row of it, or N of every M inputs."""

import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.errors import UserError, must_be
from laconic.formats import Sparse
from laconic.methods.prune.size import GRID, Pruning, Size, Solver
from laconic.numerics.masks import keep_in_groups, keep_in_matrix, keep_in_rows, marked

Within = Literal["matrix", "row"]


_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Scored(Pruning):
    """Weights go one by one.

    pattern: `N:M`, N weights kept of every M consecutive inputs, in place of a sparsity.
    within:  over what the smallest scores are found, the whole `matrix` or every `row` (output) for itself.
    cap:     the largest sparsity of any one matrix where one budget is shared among many.
    """

    coarseness: ClassVar[int] = 1
    """Its ladder has every n-th sparsity of the grid alone, where each is a large problem of its own."""

    pattern: str | None = None
    within: Within = "matrix"
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cap <= 1:
            raise must_be(f"{self.name}.cap", "in (0, 1]", self.cap)
        if self.pattern is not None and self.sparsity is not None:
            raise UserError(f"{self.name} takes either sparsity or pattern; got both.")
        if self.pattern is not None:
            n_of_m(self.name, self.pattern)

    @abstractmethod
    def scores(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Float[Tensor, "out in"]:
        """What each weight is worth, ≥ 0; the smallest go. Comparable from matrix to matrix as far as the method is."""

    @property
    def size(self) -> Size | None:
        if self.pattern is not None:
            return n_of_m(self.name, self.pattern)
        return None if self.sparsity is None else float(self.sparsity)

    @property
    def grid(self) -> tuple[float, ...]:
        return tuple(sparsity for sparsity in GRID[:: self.coarseness] if sparsity <= self.cap)

    def grain(self, shape: tuple[int, int]) -> int:
        return 1 if self.within == "matrix" else shape[0]

    def unsized(self) -> "Scored":
        return replace(self, sparsity=None, pattern=None)

    def shape_error(self, shape: tuple[int, int], matrix: str) -> UserError | None:
        return indivisible(self.name, self.size, shape[1], matrix) if isinstance(self.size, tuple) else None

    def keep(self, scores: Float[Tensor, "out in"], size: Size) -> Bool[Tensor, "out in"]:
        """Which weights stay, of scores where those that are zero already have −∞.

        Raises:
            UserError: the width is no multiple of M.
        """
        if isinstance(size, tuple):
            check_divides(self.name, size, scores.shape[1])
            return keep_in_groups(scores, size)
        return keep_in_matrix(scores, size) if self.within == "matrix" else keep_in_rows(scores, size)


def n_of_m(name: str, pattern: str) -> tuple[int, int]:
    """(N, M) of the `pattern` of the method `name`.

    Raises:
        UserError: it is none.
    """
    matched = _PATTERN.fullmatch(pattern)
    if matched is None or int(matched[1]) >= int(matched[2]):
        raise must_be(f"{name}.pattern", "N:M with 0 < N < M, like 2:4", pattern)
    return int(matched[1]), int(matched[2])


def check_divides(name: str, pattern: tuple[int, int], width: int) -> None:
    """Raise UserError where a row of `width` inputs is no whole number of groups of the pattern (N, M)."""
    mistake = indivisible(name, pattern, width, "the matrix")
    if mistake is not None:
        raise mistake


def indivisible(name: str, pattern: tuple[int, int], width: int, matrix: str) -> UserError | None:
    """What `check_divides` raises, of a `matrix` with a name."""
    n, m = pattern
    requirement = f"of a group that divides the inputs of {matrix}, which are {width}"
    return must_be(f"{name}.pattern", requirement, f"{n}:{m}") if width % m else None


def masked(method: Scored, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
    """What keeps the weights of the largest scores as they are."""
    scores = marked(method.scores(weight, known), known.support)

    def solve(size: Size) -> Sparse:
        return sparse(weight, method.keep(scores, size), size)

    return solve


def sparse(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], size: Size) -> Sparse:
    """`weight` where the mask says so."""
    return Sparse.of(weight, mask, size if isinstance(size, tuple) else None)


def loses_nothing(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]) -> bool:
    """True where there is nothing to make up for, so that what stays is not to be touched."""
    return not bool(weight.masked_fill(mask, 0).any())
