"""WLRA: min Σ_ij Φ_ij (W − Ŵ)_ij² over rank r, Φ the Fisher information of each weight.

N. Srebro, T. Jaakkola, "Weighted Low-Rank Approximations", ICML 2003.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import Fisher, InputCovariance, LayerStats
from laconic.formats import LowRank
from laconic.methods.base import Candidates
from laconic.methods.lowrank.base import LowRankMethod
from laconic.methods.prediction import predicted_losses
from laconic.numerics.weighted import SolverName, weighted_low_rank

# Each rank is solved separately, so few are offered.
OFFERED_RANKS = 8


@dataclass(frozen=True, kw_only=True)
class Wlra(LowRankMethod):
    """Weighted low-rank approximation: each weight counts by its Fisher information.

    Minimises Σ_ij Φ_ij (W − Ŵ)_ij² over rank r, which has no closed form. The solution of one rank
    does not follow from that of another, so every rank is solved separately.

    Args:
        solver: `em` (expectation-maximization), EM accelerated by `nesterov` or `anderson`, or `als` (alternating
            least squares), which is slower at high rank.
        iterations: at most this many; it stops early at convergence.
        precondition: divide Φ by a rank-one upper bound first; without it hundreds of iterations are needed.

    Reference:
        N. Srebro, T. Jaakkola, "Weighted Low-Rank Approximations", ICML 2003; acceleration: D. Tuzhilina, T. Hastie,
        arXiv 2109.11057; Φ as in Y.-C. Hsu et al., ICLR 2022.

    Example:
        >>> import torch
        >>> weight, Phi = torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([[0.01, 1.0], [1.0, 100.0]])
        >>> stats = LayerStats([Fisher.from_total(Phi, count=1)])
        >>> Wlra(rank=1).compress(weight, stats).dense().detach().round(decimals=1)
        tensor([[0., 0.],
                [0., 1.]])
    """

    name = "wlra"
    paper = "Srebro & Jaakkola, ICML 2003; acceleration: Tuzhilina & Hastie, arXiv 2109.11057"
    needs = frozenset({Fisher})

    solver: SolverName = "nesterov"
    iterations: Annotated[int, Field(ge=1)] = 30
    precondition: bool = True

    def compress(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> LowRank:
        rank = self.rank_of(weight.shape)
        Phi = stats[Fisher].matrix
        A, B, _ = weighted_low_rank(weight, Phi, rank, self.solver, self.iterations, self.precondition)
        return LowRank.from_factors(A.to(weight.dtype), B.to(weight.dtype))

    def candidates(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Candidates:
        m, n = weight.shape
        offered = self.offered_ranks((m, n))
        # Evenly spaced among the ranks from `multiple` on, which are few, because each of them is solved by itself.
        spaced = [rank for rank in offered if rank >= self.multiple] or offered
        places = [(i + 1) * len(spaced) // OFFERED_RANKS for i in range(OFFERED_RANKS)]
        ranks = sorted({*offered[:1], *(spaced[place - 1] for place in places if place)})

        def predict() -> tuple[Tensor]:
            results = (self.with_rank(rank).compress(weight, stats) for rank in ranks)
            return (predicted_losses(weight, stats, results),)

        (losses,) = stats.get_or_compute(f"losses at {ranks} of {self.cache_key(weight)}", predict)
        lookup = stats[InputCovariance].matrix.ndim == 1
        return self.candidates_at(dict(zip(ranks, losses.tolist(), strict=True)), weight, lookup=lookup)
