"""What most low-rank methods share: an ordered expansion W = Σ_i a_i b_i^T of which the first r terms are kept.

Such a method says only how the expansion is made (`components`). The expansion serves every size, so it is worked out
once for a matrix and remembered with what is known of it.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.formats import LowRank
from laconic.methods.base import Candidates
from laconic.methods.lowrank.size import RankSized
from laconic.numerics.loss import truncation_losses
from laconic.numerics.lowrank import Components


@dataclass(frozen=True, kw_only=True)
class Truncation(RankSized):
    """A rank-r approximation by keeping the leading terms of an expansion."""

    remembers: ClassVar[bool] = True

    @abstractmethod
    def components(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Components:
        """The ordered expansion of `weight`, as long as its numerical rank."""

    def compress(self, weight: Float[Tensor, "out in"], known: LayerStats) -> LowRank:
        rank = self.rank_of(weight.shape)
        A, B = self.expansion(weight, known)
        return LowRank.of(A[:, :rank].clone(), B[:rank].clone())

    def candidates(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Candidates:
        def predict() -> tuple[Tensor, Tensor]:
            A, B = self.expansion(weight, known)
            C = known[InputCovariance].matrix
            return truncation_losses(A, B, known[GradCovariance].matrix, C), torch.tensor(C.ndim == 1)

        losses, lookup = known.once(f"losses of {self.name_for(weight)}", predict)
        m, n = weight.shape
        ranks = [rank for rank in self.ranks_on_offer((m, n)) if rank < len(losses)]
        return self.ladder_of({rank: losses[rank].item() for rank in ranks}, weight, lookup=bool(lookup))

    def expansion(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Components:
        """The `components` in the dtype of `weight`, computed at the first call for these statistics only."""
        name = f"expansion of {self.name_for(weight)}"
        if name not in known.worked_out:
            A, B = self.components(weight, known)
            known.worked_out[name] = A.to(weight.dtype), B.to(weight.dtype)
        return Components(*known.worked_out[name])
