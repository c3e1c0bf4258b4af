"""Whole rows or columns of a matrix set to zero, by their norm or at random; torch.nn.utils.prune's `ln_structured` and
`random_structured`.

The shape stays: to make a model narrower for real is a step, not a method, because other matrices must follow.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.errors import must_be
from laconic.formats import Sparse
from laconic.methods.prune.random import generator_for
from laconic.methods.prune.size import Pruning, Size, Solver
from laconic.numerics.masks import largest, zeros_for

Norm = Literal[1, 2, "inf"]


@dataclass(frozen=True, kw_only=True)
class Structured(Pruning):
    """Rows or columns go, whole.

    sparsity: the fraction of them that go; in place of `keep`.
    dim:      0 for rows (outputs), 1 for columns (inputs).

    Those that an earlier step emptied count; single zeros in the others stay, and do not.
    """

    dim: Annotated[int, Field(ge=0, le=1)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim not in (0, 1):
            raise must_be(f"{self.name}.dim", "0 for rows or 1 for columns", self.dim)

    @abstractmethod
    def line_scores(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " lines"]:
        """What each row, or column, is worth; the smallest go."""

    def grain(self, shape: tuple[int, int]) -> int:
        return shape[1 - self.dim]

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        support = torch.ones_like(weight, dtype=torch.bool) if known.support is None else known.support
        empty = ~support.any(dim=1 - self.dim)
        # Lines that are zero already go first, and so count.
        scores = self.line_scores(weight * support).double().masked_fill(empty, -torch.inf)

        def solve(size: Size) -> Sparse:
            assert not isinstance(size, tuple), "a pattern is within rows"
            kept = torch.tensor([len(scores) - zeros_for(size, len(scores))], device=scores.device)
            lines = largest(scores[None], kept).squeeze(0)
            return Sparse.of(weight, support & (lines[:, None] if self.dim == 0 else lines))

        return solve


@dataclass(frozen=True, kw_only=True)
class LnStructured(Structured):
    """The rows or columns of the smallest norm go.

    n: of which norm: 1, 2 or `inf`.
    """

    name = "ln-structured"
    paper = "torch.nn.utils.prune; Li et al., ICLR 2017"
    needs = frozenset()

    n: Norm = 2

    def line_scores(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " lines"]:
        return torch.linalg.vector_norm(weight.double(), ord=float(self.n), dim=1 - self.dim)


@dataclass(frozen=True, kw_only=True)
class RandomStructured(Structured):
    """Rows or columns go at random.

    seed: of what is drawn; matrices of other contents draw other numbers.
    """

    name = "random-structured"
    paper = "torch.nn.utils.prune"
    needs = frozenset()

    seed: int = 0

    def line_scores(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " lines"]:
        lines = weight.shape[self.dim]
        return torch.rand(lines, generator=generator_for(self.seed, weight)).to(weight.device)
