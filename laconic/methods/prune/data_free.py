"""Pruning without data, by weights or at random: the four methods of torch.nn.utils.prune.

`magnitude` prunes the smallest |w| (S. Han et al., NeurIPS 2015), `random` any weight, `ln-structured` the rows or
columns of the smallest Lₙ norm (H. Li et al., ICLR 2017), `random-structured` any row or column. The shape of the
matrix stays. Making a model narrower is the step `narrow`, because other matrices must follow.
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
from laconic.methods.base import digest
from laconic.methods.prune.base import PruningMethod, Size, Solver, UnstructuredPruning
from laconic.numerics.masks import keep_largest, zero_count

Norm = Literal[1, 2, "inf"]


@dataclass(frozen=True, kw_only=True)
class Magnitude(UnstructuredPruning):
    """Prunes the smallest weights; reads no data.

    The score is |w|, as in torch.nn.utils.prune's `l1_unstructured`.

    Reference:
        S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks",
        NeurIPS 2015, arXiv 1506.02626.

    Example:
        >>> weight = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
        >>> Magnitude(sparsity=0.5).compress(weight, LayerStats()).dense().tolist()
        [[0.0, -4.0], [3.0, 0.0]]
    """

    name = "magnitude"
    paper = "Han et al., NeurIPS 2015"
    needs = frozenset()

    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        return weight.abs()


@dataclass(frozen=True, kw_only=True)
class Random(UnstructuredPruning):
    """Prunes random weights; reads no data.

    As torch.nn.utils.prune's `random_unstructured`. The scores are drawn from the seed and the content of the matrix:
    one matrix always gets the same mask, two matrices of one shape get different ones.

    Args:
        seed: seed of the random scores.

    Example:
        >>> Random(sparsity=0.75).compress(torch.ones(4, 4), LayerStats()).dense().sum().item()
        4.0
    """

    name = "random"
    paper = "torch.nn.utils.prune"
    needs = frozenset()

    seed: int = 0

    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        return torch.rand(weight.shape, generator=generator_for(self.seed, weight)).to(weight.device)


def generator_for(seed: int, weight: Float[Tensor, "out in"]) -> torch.Generator:
    """A random generator that is seeded by `seed` and the content of the matrix.

    Example:
        >>> weight = torch.ones(2, 2)
        >>> torch.rand(1, generator=generator_for(0, weight)) == torch.rand(1, generator=generator_for(0, weight))
        tensor([True])
    """
    return torch.Generator().manual_seed((int(digest(weight)[:15], 16) + seed) % 2**63)


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
