"""What all low-rank methods share: an ordered expansion W = Σ_i a_i b_i^T of which the first r terms are kept.

A method of this family says only how the expansion is made (`components`). Its size is `rank`, or `rank_ratio` of
the smaller side, or is set by `at` from a fraction of bytes; ranks set by `at` and by the ladder are multiples of
`multiple`, which is what matrix kernels run fastest on.
The expansion serves every size, so it is worked out once for a matrix and remembered with what is known of it.
"""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import Gram, Known, OutputGram
from laconic.errors import UserError, must_be
from laconic.formats import LowRank
from laconic.methods.base import Ladder, Method, Rung
from laconic.numerics.loss import truncation_losses
from laconic.numerics.lowrank import Components, break_even_rank, rank_for


@dataclass(frozen=True, kw_only=True)
class Truncation(Method):
    """A rank-r approximation by keeping the leading terms of an expansion."""

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

    @abstractmethod
    def components(self, weight: Float[Tensor, "out in"], known: Known) -> Components:
        """The ordered expansion of `weight`, as long as its numerical rank."""

    @property
    def has_size(self) -> bool:
        return self.rank is not None or self.rank_ratio is not None

    def compress(self, weight: Float[Tensor, "out in"], known: Known) -> LowRank:
        rank = self._rank(weight)
        A, B = self._remembered(weight, known)
        return LowRank.of(A[:, :rank].clone(), B[:rank].clone())

    def at(self, keep: float, shape: tuple[int, int]) -> "Truncation":
        return replace(self, rank=rank_for(keep, *shape, self.multiple), rank_ratio=None)

    def ladder(self, weight: Float[Tensor, "out in"], known: Known) -> Ladder:
        m, n = weight.shape
        losses, lookup = self._losses(weight, known)
        highest = min(break_even_rank(m, n), len(losses) - 1)
        size = weight.element_size()
        rungs = [
            Rung(
                method=replace(self, rank=rank, rank_ratio=None),
                nbytes=rank * (m + n) * size,
                parameters=rank * (m + n),
                products=((m, rank),) if lookup else ((rank, n), (m, rank)),
                loss=losses[rank],
            )
            for rank in range(self.multiple, highest + 1, self.multiple) or range(1, highest + 1)
        ]
        dense = Rung(method=None, nbytes=m * n * size, parameters=m * n, products=() if lookup else ((m, n),), loss=0.0)
        return Ladder((*rungs, dense))

    def unsized(self) -> "Truncation":
        return replace(self, rank=None, rank_ratio=None)

    def _remembered(self, weight: Float[Tensor, "out in"], known: Known) -> Components:
        """The expansion in the dtype of `weight`, in which it will be stored."""

        def expand() -> Components:
            A, B = self.components(weight, known)
            return Components(A.to(weight.dtype), B.to(weight.dtype))

        return Components(*known.once(f"expansion {self._name_for(weight)}", expand))

    def _losses(self, weight: Float[Tensor, "out in"], known: Known) -> tuple[list[float], bool]:
        """The loss of every rank, and whether the inputs are one-hot, so that multiplying by the matrix is free."""

        def predict() -> tuple[Tensor, Tensor]:
            A, B = self._remembered(weight, known)
            C = known[Gram].matrix
            return truncation_losses(A, B, known[OutputGram].matrix, C), torch.tensor(C.ndim == 1)

        losses, lookup = known.once(f"losses {self._name_for(weight)}", predict)
        return losses.tolist(), bool(lookup)

    def _name_for(self, weight: Float[Tensor, "out in"]) -> str:
        content = weight.contiguous().cpu().view(torch.uint8).numpy()
        return f"{replace(self.unsized(), multiple=1)} of {hashlib.blake2b(content, digest_size=16).hexdigest()}"

    def _rank(self, weight: Float[Tensor, "out in"]) -> int:
        smaller = min(weight.shape)
        if self.rank is not None:
            return min(self.rank, smaller)
        if self.rank_ratio is not None:
            return max(1, int(self.rank_ratio * smaller))
        raise UserError(f"{self.name} needs a size: give keep, {self.name}:rank=R or {self.name}:rank_ratio=R.")
