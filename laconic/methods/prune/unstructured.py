"""Pruning weight by weight: a sparsity over the whole matrix or over every row, or a pattern N:M."""

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
from laconic.methods.prune.base import SPARSITIES, PruningMethod, Size, Solver
from laconic.numerics.masks import exclude_pruned, keep_in_groups, keep_in_matrix, keep_in_rows

Within = Literal["matrix", "row"]

_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class UnstructuredPruning(PruningMethod):
    """A method that scores every weight and prunes the lowest scores.

    Args:
        sparsity: fraction of zeros in every matrix, those of an earlier step included; in place of `keep`.
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
        """The mask that keeps the highest scores, True where a weight is kept.

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
    """The error of `check_pattern` for a matrix that is called `matrix`; None where the pattern fits.

    Example:
        >>> pattern_error("wanda", (2, 4), width=8, matrix="fc") is None
        True
    """
    n, m = pattern
    requirement = f"of a group that divides the inputs of {matrix}, which are {width}"
    return must_be(f"{method}.pattern", requirement, f"{n}:{m}") if width % m else None


def solver_by_scores(method: UnstructuredPruning, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
    """A solver that keeps the weights of the highest scores, unchanged."""
    scores = exclude_pruned(method.scores(weight, stats), stats.support)

    def solve(size: Size) -> Sparse:
        return to_sparse(weight, method.mask_for(scores, size), size)

    return solve


def to_sparse(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], size: Size) -> Sparse:
    """The weights where `mask` is True; `size` says whether they follow a pattern."""
    return Sparse.from_dense(weight, mask, size if isinstance(size, tuple) else None)


def removes_nothing(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]) -> bool:
    """Whether every weight outside the mask is zero already, so that nothing has to be compensated for.

    Example:
        >>> import torch
        >>> removes_nothing(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]]))
        True
    """
    return not bool(weight.masked_fill(mask, 0).any())
