"""Pruning of whole rows or columns, as torch.nn.utils.prune's `ln_structured` and `random_structured`.

The shape stays. Making a model narrower is the step `narrow`, because other matrices must follow.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.formats import Sparse
from laconic.methods.prune.base import PruningMethod, Size, Solver
from laconic.methods.prune.random import generator_for
from laconic.numerics.masks import keep_largest, zero_count

Norm = Literal[1, 2, "inf"]


@dataclass(frozen=True, kw_only=True)
class StructuredPruning(PruningMethod):
    """Prunes whole rows or columns.

    Rows and columns that are zero already count towards the sparsity; single zeros in the others do not.

    Args:
        sparsity: the fraction of rows or columns that are pruned; in place of `keep`.
        dim: 0 for rows (outputs), 1 for columns (inputs).
    """

    dim: Annotated[int, Field(ge=0, le=1)] = 0

    @abstractmethod
    def line_scores(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " lines"]:
        """The importance of each row or column, ≥ 0; the lowest are pruned."""

    def granularity(self, shape: tuple[int, int]) -> int:
        return shape[1 - self.dim]

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        support = torch.ones_like(weight, dtype=torch.bool) if stats.support is None else stats.support
        empty = ~support.any(dim=1 - self.dim)
        # Rows or columns that are zero already come first, and so count.
        scores = self.line_scores(weight * support).double().masked_fill(empty, -torch.inf)

        def solve(size: Size) -> Sparse:
            assert not isinstance(size, tuple), "a pattern is within rows"
            kept = torch.tensor([len(scores) - zero_count(size, len(scores))], device=scores.device)
            lines = keep_largest(scores[None], kept).squeeze(0)
            return Sparse.from_dense(weight, support & (lines[:, None] if self.dim == 0 else lines))

        return solve


@dataclass(frozen=True, kw_only=True)
class LnStructured(StructuredPruning):
    """Prunes the rows or columns of the smallest norm; reads no data.

    Args:
        sparsity: the fraction of rows or columns that are pruned; in place of `keep`.
        dim: 0 for rows (outputs), 1 for columns (inputs).
        n: the order of the norm: 1, 2 or `inf`.

    Reference:
        torch.nn.utils.prune; H. Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
        >>> LnStructured(sparsity=0.5).compress(weight, LayerStats()).dense().tolist()
        [[3.0, 4.0], [0.0, 0.0]]
    """

    name = "ln-structured"
    paper = "torch.nn.utils.prune; Li et al., ICLR 2017"
    needs = frozenset()

    n: Norm = 2

    def line_scores(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " lines"]:
        return torch.linalg.vector_norm(weight.double(), ord=float(self.n), dim=1 - self.dim)


@dataclass(frozen=True, kw_only=True)
class RandomStructured(StructuredPruning):
    """Prunes random rows or columns; reads no data.

    Args:
        sparsity: the fraction of rows or columns that are pruned; in place of `keep`.
        dim: 0 for rows (outputs), 1 for columns (inputs).
        seed: seed of the choice. It is drawn from the seed and the content of the matrix, so that two matrices of one
            shape lose different rows.

    Example:
        >>> method = RandomStructured(sparsity=0.5, dim=1)
        >>> method.compress(torch.ones(3, 4), LayerStats()).dense().sum(0).sort().values.tolist()
        [0.0, 0.0, 3.0, 3.0]
    """

    name = "random-structured"
    paper = "torch.nn.utils.prune"
    needs = frozenset()

    seed: int = 0

    def line_scores(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " lines"]:
        lines = weight.shape[self.dim]
        return torch.rand(lines, generator=generator_for(self.seed, weight)).to(weight.device)
