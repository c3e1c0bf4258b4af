"""How large a low-rank method makes a matrix: `rank`, `rank_ratio` of the smaller side, or `at` a fraction of bytes.

Ranks set by `at` and by ladders are multiples of `multiple`, which is what matrix kernels run fastest on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.errors import UserError, must_be
from laconic.formats import LowRank
from laconic.methods.base import Candidate, Candidates, Method, digest_of
from laconic.numerics.lowrank import break_even_rank, rank_for


@dataclass(frozen=True, kw_only=True)
class RankSized(Method):
    """A method whose result is a `LowRank` of a chosen rank.

    rank:       of every matrix; in place of `keep`.
    rank_ratio: the rank as a fraction of the smaller side of each matrix; in place of `keep`.
    multiple:   ranks that follow from `keep` are multiples of it, on which matrix kernels run fastest.
    """

    family: ClassVar[str] = "low rank"
    shares_inputs: ClassVar[bool] = True

    rank: Annotated[int, Field(ge=1)] | None = None
    rank_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    multiple: Annotated[int, Field(ge=1)] = 8

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise must_be(f"{self.name}.rank", "at least 1", self.rank)
        if self.rank_ratio is not None and not 0 < self.rank_ratio <= 1:
            raise must_be(f"{self.name}.rank_ratio", "in (0, 1]", self.rank_ratio)
        if self.multiple < 1:
            raise must_be(f"{self.name}.multiple", "at least 1", self.multiple)
        if self.rank is not None and self.rank_ratio is not None:
            raise UserError(f"{self.name} takes either rank or rank_ratio; got both.")

    def empty_format(self, shape: tuple[int, int], kept: int | None = None) -> LowRank:
        rank = self.rank_of(shape) if self.has_size else min(self.multiple, *shape)
        with torch.device("meta"):
            return LowRank(*shape, rank, bias=False)

    @property
    def has_size(self) -> bool:
        return self.rank is not None or self.rank_ratio is not None

    def at(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "RankSized":
        return self.with_rank(rank_for(keep, *shape, self.multiple))

    def larger(self, shape: tuple[int, int], *, finest: bool = False) -> "RankSized | None":
        rank = self.rank_of(shape) + (1 if finest else self.multiple)
        return self.with_rank(rank) if rank <= break_even_rank(*shape) else None

    def unsized(self) -> "RankSized":
        return self.with_rank(None)

    def with_rank(self, rank: int | None) -> "RankSized":
        """This method at another rank."""
        return replace(self, rank=rank, rank_ratio=None)

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """The rank that a matrix of `shape` gets.

        Raises:
            UserError: no size was set.
        """
        smaller = min(shape)
        if self.rank is not None:
            return min(self.rank, smaller)
        if self.rank_ratio is not None:
            return max(1, int(self.rank_ratio * smaller))
        raise UserError(f"{self.name} needs a size: give keep, {self.name}:rank=R or {self.name}:rank_ratio=R.")

    def ranks_on_offer(self, shape: tuple[int, int]) -> range:
        """Every multiple of `multiple` that is smaller than the dense matrix; every rank where there is no multiple."""
        highest = break_even_rank(*shape)
        return range(self.multiple, highest + 1, self.multiple) or range(1, highest + 1)

    def ladder_of(self, losses: Mapping[int, float], weight: Float[Tensor, "out in"], lookup: bool) -> Candidates:
        """The rungs of some ranks by their losses, and the dense matrix.

        lookup: the inputs are one-hot, so that multiplying by a dense matrix is free.
        """
        m, n = weight.shape
        size = weight.element_size()
        rungs = [
            Candidate(
                method=self.with_rank(rank),
                nbytes=rank * (m + n) * size,
                parameters=rank * (m + n),
                products=((m, rank),) if lookup else ((rank, n), (m, rank)),
                loss=loss,
            )
            for rank, loss in losses.items()
        ]
        dense = Candidate(
            method=None, nbytes=m * n * size, parameters=m * n, products=() if lookup else ((m, n),), loss=0.0
        )
        return Candidates((*rungs, dense))

    def name_for(self, weight: Float[Tensor, "out in"]) -> str:
        """A key for `LayerStats.once`: this method without its size, and this weight."""
        return f"{replace(self.unsized(), multiple=1)} of {digest_of(weight)}"
