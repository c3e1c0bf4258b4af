"""WLRA: the best rank r when every single weight counts by its Fisher information.

Papers: N. Srebro, T. Jaakkola, "Weighted Low-Rank Approximations", ICML 2003: min Σ_ij Φ_ij (W − Ŵ)_ij² over rank r;
Φ as in Y.-C. Hsu et al., ICLR 2022, whose FWSVD replaces it by its column sums. There is no closed form and the
solution of one rank says nothing of the next, so every size is solved for itself.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import Fisher, GradCovariance, InputCovariance, LayerStats
from laconic.errors import must_be
from laconic.formats import LowRank
from laconic.methods.base import Candidates
from laconic.methods.lowrank.size import RankSized
from laconic.numerics.loss import quadratic_loss
from laconic.numerics.weighted import Solver, weighted_low_rank

# Sizes that a ladder offers: each is a problem of its own, so there are few.
RUNGS = 8


@dataclass(frozen=True, kw_only=True)
class Wlra(RankSized):
    """Weighted low-rank approximation.

    solver:       `em`, EM accelerated by `nesterov` or `anderson`, or `als`, which is slower at high rank.
    iterations:   at most so many; easy matrices need fewer.
    precondition: divide the weights by a rank-one bound first; without it hundreds of iterations are needed.
    """

    name = "wlra"
    paper = "Srebro & Jaakkola, ICML 2003; acceleration: Tuzhilina & Hastie, arXiv 2109.11057"
    needs = frozenset({Fisher})

    solver: Solver = "nesterov"
    iterations: Annotated[int, Field(ge=1)] = 30
    precondition: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise must_be(f"{self.name}.iterations", "at least 1", self.iterations)

    def compress(self, weight: Float[Tensor, "out in"], known: LayerStats) -> LowRank:
        rank = self.rank_of(weight.shape)
        Phi = known[Fisher].matrix
        A, B, _ = weighted_low_rank(weight, Phi, rank, self.solver, self.iterations, self.precondition)
        return LowRank.of(A.to(weight.dtype), B.to(weight.dtype))

    def candidates(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Candidates:
        F, C = known[GradCovariance].matrix, known[InputCovariance].matrix
        m, n = weight.shape
        ranks = self._coarse_ranks((m, n))

        def predict() -> tuple[Tensor]:
            solved = (self.with_rank(rank).compress(weight, known).dense().double() for rank in ranks)
            losses = [quadratic_loss(weight.double() - W_hat, F, C) for W_hat in solved]
            return (torch.tensor(losses, dtype=torch.float64),)

        (losses,) = known.once(f"losses at {ranks} of {self.name_for(weight)}", predict)
        return self.ladder_of(dict(zip(ranks, losses.tolist(), strict=True)), weight, lookup=C.ndim == 1)

    def _coarse_ranks(self, shape: tuple[int, int]) -> list[int]:
        """RUNGS of the ranks on offer, evenly spaced, the highest among them."""
        every = self.ranks_on_offer(shape)
        return [every[(i + 1) * len(every) // RUNGS - 1] for i in range(RUNGS) if (i + 1) * len(every) // RUNGS]
