"""Base classes of the low-rank methods: a choice of rank r, and the first r terms of an expansion W = Σ_i a_i b_i^T.

Ranks chosen by `with_keep` and offered as candidates are multiples of `multiple`, which matrix kernels run fastest on,
or smaller than it.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import UserError
from laconic.formats import LowRank
from laconic.methods.base import Candidate, Candidates, Method, digest
from laconic.numerics.lowrank import Components, break_even_rank, rank_for
from laconic.numerics.moments import truncation_losses


@dataclass(frozen=True, kw_only=True)
class LowRankMethod(Method):
    """A method that returns a `LowRank` of a chosen rank.

    Args:
        rank: rank of every matrix, at most its smaller side; in place of `keep`.
        rank_ratio: rank as a fraction of the smaller side of each matrix; in place of `keep`.
        multiple: ranks that follow from `keep` are multiples of it; matrix kernels run fastest on multiples of 8.

    Raises:
        UserError: both rank and rank_ratio are given.

    Example:
        >>> from laconic.methods import Svd
        >>> Svd(rank_ratio=0.5).rank_of((8, 6))
        3
        >>> list(Svd(multiple=2).offered_ranks((12, 12)))
        [1, 2, 4]
    """

    family: ClassVar[str] = "low rank"
    shares_inputs: ClassVar[bool] = True

    rank: Annotated[int, Field(ge=1)] | None = None
    rank_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    multiple: Annotated[int, Field(ge=1)] = 8

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank_ratio is not None:
            raise UserError(f"{self.name} takes either rank or rank_ratio; got both.")

    def meta_format(self, shape: tuple[int, int], kept: int | None = None) -> LowRank:
        rank = self.rank_of(shape) if self.has_size else min(self.multiple, *shape)
        with torch.device("meta"):
            return LowRank(*shape, rank, bias=False)

    @property
    def has_size(self) -> bool:
        return self.rank is not None or self.rank_ratio is not None

    def with_keep(self, keep: float, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> "LowRankMethod":
        return self.with_rank(rank_for(keep, *shape, self.multiple))

    def next_larger(self, shape: tuple[int, int], *, finest: bool = False) -> "LowRankMethod | None":
        rank = self.rank_of(shape) + (1 if finest else self.multiple)
        return self.with_rank(rank) if rank <= break_even_rank(*shape) else None

    def without_size(self) -> "LowRankMethod":
        return self.with_rank(None)

    def with_rank(self, rank: int | None) -> "LowRankMethod":
        """A copy with another rank; None for no size."""
        return replace(self, rank=rank, rank_ratio=None)

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """The rank for a matrix of `shape` (out, in).

        Raises:
            UserError: no size is set.
        """
        smaller = min(shape)
        if self.rank is not None:
            return min(self.rank, smaller)
        if self.rank_ratio is not None:
            return max(1, int(self.rank_ratio * smaller))
        raise UserError(f"{self.name} needs a size: give keep, {self.name}:rank=R or {self.name}:rank_ratio=R.")

    def offered_ranks(self, shape: tuple[int, int]) -> list[int]:
        """The ranks of the candidates: those below `multiple`, and its multiples, if the factors are smaller."""
        highest = break_even_rank(*shape)
        return [rank for rank in range(1, highest + 1) if rank < self.multiple or rank % self.multiple == 0]

    def candidates_at(self, losses: Mapping[int, float], weight: Float[Tensor, "out in"], lookup: bool) -> Candidates:
        """Candidates from predicted losses.

        Args:
            losses: predicted loss of each rank, in nats per prediction.
            weight: the matrix.
            lookup: True for a word embedding. Rows of its right factor are looked up, so only the left factor counts as
                a product.
        """
        m, n = weight.shape
        size = weight.element_size()
        smaller = [
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
        return Candidates((*smaller, dense))

    def cache_key(self, weight: Float[Tensor, "out in"]) -> str:
        """A key for `LayerStats.get_or_compute`: this method without its size, and the content of the matrix."""
        return f"{replace(self.without_size(), multiple=1)} of {digest(weight)}"


@dataclass(frozen=True, kw_only=True)
class TruncationMethod(LowRankMethod):
    """A low-rank method that keeps the leading terms of an expansion W = Σ_i a_i b_i^T.

    A subclass defines `components`. The expansion is computed once for a matrix and serves every rank.

    Example:
        >>> from laconic.methods import Svd
        >>> stats = LayerStats()
        >>> A, B = Svd().expansion(torch.diag(torch.tensor([3.0, 1.0])), stats)
        >>> (A[:, :1] @ B[:1]).round(decimals=4)
        tensor([[3., 0.],
                [0., 0.]])
    """

    caches_solution: ClassVar[bool] = True

    @abstractmethod
    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        """The expansion of `weight`, most important term first.

        Returns:
            A (out, k) and B (k, in) with W ≈ A B, k at most the smaller side.
        """

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> LowRank:
        rank = self.rank_of(weight.shape)
        A, B = self.expansion(weight, stats)
        return LowRank.from_factors(A[:, :rank].clone(), B[:rank].clone())

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        def predict() -> tuple[Tensor, Tensor]:
            losses = self.truncation_losses(weight, stats)
            return losses, torch.tensor(stats[InputCovariance].total.ndim == 1)

        losses, lookup = stats.get_or_compute(f"losses of {self.cache_key(weight)}", predict)
        m, n = weight.shape
        ranks = [rank for rank in self.offered_ranks((m, n)) if rank < len(losses)]
        return self.candidates_at({rank: losses[rank].item() for rank in ranks}, weight, lookup=bool(lookup))

    def truncation_losses(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, " ranks"]:
        """The predicted losses of keeping the first r terms of the `expansion`, for every r, in nats per prediction."""
        A, B = self.expansion(weight, stats)
        return truncation_losses(A, B, stats[GradCovariance].matrix, stats[InputCovariance].matrix)

    def expansion(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        """The `components` in the dtype of `weight`, computed at the first call for these statistics only."""
        name = self._expansion_key(weight)
        if name not in stats.solutions:
            self.keep_expansion(weight, stats, self.components(weight, stats))
        return Components(*stats.solutions[name])

    def keep_expansion(self, weight: Float[Tensor, "out in"], stats: LayerStats, components: Components) -> None:
        """Keep the `components` of `weight` for `expansion`.

        Args:
            weight: the matrix.
            stats: its statistics, changed in place.
            components: the expansion.
        """
        A, B = components
        stats.solutions[self._expansion_key(weight)] = A.to(weight.dtype), B.to(weight.dtype)

    def _expansion_key(self, weight: Float[Tensor, "out in"]) -> str:
        return f"expansion of {self.cache_key(weight)}"
