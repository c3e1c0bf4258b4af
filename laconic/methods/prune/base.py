"""Base classes of the pruning methods: the number of zeros, masks, and the sizes offered as candidates.

Sparsity is the fraction of zeros in the whole matrix. Zeros of an earlier step (`LayerStats.support`) stay zero and
count. If a matrix has more zeros than the sparsity demands, it is returned bit for bit unchanged. On disk the result is
one bit for each weight and the values of the nonzero ones.
"""

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.errors import UserError, must_be
from laconic.formats import Sparse
from laconic.methods.base import Candidates, Method
from laconic.methods.prediction import predict_candidates
from laconic.numerics.masks import exclude_pruned, keep_in_groups, keep_in_matrix, keep_in_rows, zero_count
from laconic.numerics.moments import check_finite

SPARSITIES = tuple(part / 20 for part in range(2, 20))
"""The sparsities that are offered as candidates: 0.1, 0.15, … 0.95."""

Size = float | tuple[int, int]
"""A sparsity, or a pattern (N, M): N weights kept of every M consecutive inputs."""

Solver = Callable[[Size], Sparse]
"""Prunes one matrix to any size."""

Within = Literal["matrix", "row"]
_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class PruningMethod(Method):
    """A method that sets weights to zero and returns a `Sparse`.

    Args:
        sparsity: fraction of zeros in every matrix, those of an earlier step included; in place of `keep`.

    Example:
        >>> from laconic.methods import Magnitude
        >>> Magnitude().with_keep(0.5, shape=(8, 8)).sparsity  # the mask takes a bit for each weight of 32 bits
        0.53125
    """

    family: ClassVar[str] = "pruning"
    keeps_support: ClassVar[bool] = True

    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None

    @abstractmethod
    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        """A function that prunes `weight` to any size; the work that all sizes share is done once, here."""

    @abstractmethod
    def granularity(self, shape: tuple[int, int]) -> int:
        """Number of weights of a matrix of `shape` (out, in) that are pruned together: 1, or a whole row or column."""

    @property
    def size(self) -> Size | None:
        """The size that is set, else None."""
        return None if self.sparsity is None else float(self.sparsity)

    @property
    def offered_sparsities(self) -> tuple[float, ...]:
        """The sparsities of its candidates, ascending."""
        return SPARSITIES

    @property
    def has_size(self) -> bool:
        return self.size is not None

    @property
    def sizes(self) -> "list[PruningMethod]":
        """A copy for each of the offered sparsities."""
        return [self.with_sparsity(sparsity) for sparsity in self.offered_sparsities]

    def nbytes_for(self, shape: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes on disk of an unpruned matrix of `shape` (out, in) in `dtype` after this method, whose size is set."""
        return self.meta_format(shape).to(dtype).nbytes()

    def meta_format(self, shape: tuple[int, int], kept: int | None = None) -> Sparse:
        size, (m, n) = 0.5 if self.size is None else self.size, shape
        if isinstance(size, tuple):
            count = m * (n // size[1] * size[0] + n % size[1])
        else:
            group = self.granularity(shape)
            count = m * n - zero_count(size, m * n // group) * group
        # Zeros of an earlier step need not follow the pattern.
        pattern = size if isinstance(size, tuple) and n % size[1] == 0 and kept is None else None
        with torch.device("meta"):
            layer = Sparse(m, n, count if kept is None else min(count, kept), bias=False, pattern=pattern)
        layer.unpack()
        return layer

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Sparse:
        """The pruned matrix.

        Raises:
            UserError: no size is set, the size does not fit the shape, or a weight is NaN or infinite.
        """
        if self.size is None:
            raise UserError(f"{self.name} needs a size: give keep, or {self.name}:sparsity=S with S in [0, 1).")
        check_finite(weight, f"{self.name} cannot prune weights that are NaN or infinite; check the model.")
        return self.solver(weight, stats)(self.size)

    def with_keep(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "PruningMethod":
        count, group = shape[0] * shape[1], self.granularity(shape)
        values = (keep - self.overhead(dtype)) * count
        # The mask is rounded up to whole bytes, which may cost one more value. 1e-9, because 0.29 · 800 is 231.99….
        available = values - 1 if count % 8 else values
        kept = min(max(int(available / group + 1e-9), 1), count // group)
        return self.with_sparsity(1 - kept / (count // group))

    def next_larger(self, shape: tuple[int, int], *, finest: bool = False) -> "PruningMethod | None":
        if not isinstance(self.size, float):
            return None
        groups = shape[0] * shape[1] // self.granularity(shape)
        kept = groups - zero_count(self.size, groups) + 1
        return self.with_sparsity(1 - kept / groups) if kept < groups else None

    def smallest_size(self, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "PruningMethod":
        return self.with_sparsity(max(self._useful_sparsities(shape, None), default=0.0))

    def overhead(self, dtype: torch.dtype) -> float:
        return 1 / (8 * dtype.itemsize)

    def without_size(self) -> "PruningMethod":
        return replace(self, sparsity=None)

    def with_sparsity(self, sparsity: float) -> "PruningMethod":
        """A copy with another sparsity."""
        return replace(self.without_size(), sparsity=sparsity)

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        sparsities = self._useful_sparsities((weight.shape[0], weight.shape[1]), stats.support)

        def compress() -> list[Sparse]:
            solve = self.solver(weight, stats)
            return [solve(sparsity) for sparsity in sparsities]

        return predict_candidates(weight, stats, [self.with_sparsity(sparsity) for sparsity in sparsities], compress)

    def _useful_sparsities(self, shape: tuple[int, int], support: Bool[Tensor, "out in"] | None) -> list[float]:
        """The offered sparsities, largest first. Their numbers of zeros differ, and are above the present number."""
        group = self.granularity(shape)
        groups = shape[0] * shape[1] // group
        present = 0 if support is None else int((~support).sum())
        by_zeros = {zero_count(sparsity, groups): sparsity for sparsity in reversed(self.offered_sparsities)}
        return [
            sparsity
            for zeros, sparsity in sorted(by_zeros.items(), reverse=True)
            if present < zeros * group and zeros < groups
        ]


@dataclass(frozen=True, kw_only=True)
class UnstructuredPruning(PruningMethod):
    """A method that scores every weight and prunes the lowest scores: a sparsity over the matrix or each row, or N:M.

    A subclass defines `scores`. One that also changes the weights it keeps overrides `solver`.

    Args:
        pattern: `N:M`, keep N weights of every M consecutive inputs, such as 2:4; in place of a sparsity.
        within: compare scores within the whole `matrix`, or within each `row` (output).
        cap: largest sparsity of any one matrix where one budget is shared by several.

    Raises:
        UserError: both sparsity and pattern are given, or the pattern is not N:M with N < M.

    Example:
        >>> from laconic.methods import Magnitude
        >>> Magnitude(pattern="2:4").size
        (2, 4)
    """

    stride: ClassVar[int] = 1
    """Every stride-th of the SPARSITIES is offered; more than 1 where each of them takes long to solve."""

    pattern: str | None = None
    within: Within = "matrix"
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        if self.pattern is not None and self.sparsity is not None:
            raise UserError(f"{self.name} takes either sparsity or pattern; got both.")
        if self.pattern is not None:
            parse_pattern(self.name, self.pattern)

    @abstractmethod
    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        """The importance of each weight, ≥ 0; the lowest are pruned.

        `--allocate global` compares the scores of different matrices.
        """

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        scores = exclude_pruned(self.scores(weight, stats), stats.support)
        return lambda size: to_sparse(weight, self.mask_for(scores, size), size)

    @property
    def size(self) -> Size | None:
        if self.pattern is not None:
            return parse_pattern(self.name, self.pattern)
        return None if self.sparsity is None else float(self.sparsity)

    @property
    def offered_sparsities(self) -> tuple[float, ...]:
        return tuple(sparsity for sparsity in SPARSITIES[:: self.stride] if sparsity <= self.cap)

    def granularity(self, shape: tuple[int, int]) -> int:
        return 1 if self.within == "matrix" else shape[0]

    def without_size(self) -> "UnstructuredPruning":
        return replace(self, sparsity=None, pattern=None)

    def shape_error(self, shape: tuple[int, int], matrix: str) -> UserError | None:
        return pattern_error(self.name, self.size, shape[1], matrix) if isinstance(self.size, tuple) else None

    def mask_for(self, scores: Float[Tensor, "out in"], size: Size) -> Bool[Tensor, "out in"]:
        """The mask that keeps the highest scores, True at kept weights.

        Args:
            scores: the score of each weight; −∞ for weights that are zero already.
            size: a sparsity or a pattern (N, M).

        Raises:
            UserError: the width is no multiple of M.
        """
        if isinstance(size, tuple):
            check_pattern(self.name, size, scores.shape[1])
            return keep_in_groups(scores, size)
        return keep_in_matrix(scores, size) if self.within == "matrix" else keep_in_rows(scores, size)


def parse_pattern(method: str, pattern: str) -> tuple[int, int]:
    """(N, M) of a pattern `N:M`.

    Args:
        method: the name of the method, for the error.
        pattern: the text.

    Raises:
        UserError: it is not of this form, or N ≥ M.

    Example:
        >>> parse_pattern("wanda", "2:4")
        (2, 4)
    """
    matched = _PATTERN.fullmatch(pattern)
    if matched is None or int(matched[1]) >= int(matched[2]):
        raise must_be(f"{method}.pattern", "N:M with 0 < N < M, like 2:4", pattern)
    return int(matched[1]), int(matched[2])


def check_pattern(method: str, pattern: tuple[int, int], width: int) -> None:
    """Raise UserError where M of the pattern (N, M) does not divide `width`, the number of inputs."""
    error = pattern_error(method, pattern, width, "the matrix")
    if error is not None:
        raise error


def pattern_error(method: str, pattern: tuple[int, int], width: int, matrix: str) -> UserError | None:
    """The error of `check_pattern` for a matrix that is called `matrix`; None if the pattern fits.

    Example:
        >>> pattern_error("wanda", (2, 4), width=8, matrix="fc") is None
        True
    """
    n, m = pattern
    requirement = f"N:M with an M that divides the {width} inputs of {matrix}"
    return must_be(f"{method}.pattern", requirement, f"{n}:{m}") if width % m else None


def to_sparse(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], size: Size) -> Sparse:
    """The weights where `mask` is True; `size` says whether they follow a pattern."""
    return Sparse.from_dense(weight, mask, size if isinstance(size, tuple) else None)


def removes_nothing(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]) -> bool:
    """Whether every weight outside the mask is zero already, so that pruning causes no error to compensate for.

    Example:
        >>> removes_nothing(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]]))
        True
    """
    return not bool(weight.masked_fill(mask, 0).any())
