"""FWSVD: Ŵ = SVD_r(W D) D^{-1} with D = diag(√Î), Î_j the Fisher information of input j.

Y.-C. Hsu et al., "Language model compression with weighted low-rank factorization", ICLR 2022, arXiv 2207.00112.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Fisher, LayerStats
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import Components, column_weighted_components

# An input with Î = 0 would have no inverse; it counts this fraction of the mean instead.
LEAST_IMPORTANCE = 1e-6


def fisher_weights(Phi: Float[Tensor, "out in"]) -> Float[Tensor, " in"]:
    """The square roots of the column sums of the Fisher information, relative to their mean.

    Args:
        Phi: diagonal Fisher information of each weight, ≥ 0.

    Returns:
        √(Î_j / mean Î) with Î_j = Σ_i Φ_ij, at least 0.001; ones if Φ is all zero. In fp64.

    Example:
        >>> import torch
        >>> fisher_weights(torch.tensor([[1.0, 0.0], [7.0, 8.0]]))
        tensor([1., 1.], dtype=torch.float64)
    """
    importance = Phi.double().sum(0)
    mean = importance.mean()
    if mean <= 0:
        return importance.new_ones(len(importance))
    return (importance / mean).clamp(min=LEAST_IMPORTANCE).sqrt()


@dataclass(frozen=True, kw_only=True)
class Fwsvd(TruncationMethod):
    """SVD with each input feature weighted by its Fisher information.

    Minimises Σ_ij Î_j (W − Ŵ)_ij² with Î_j = Σ_i Φ_ij by Ŵ = SVD_r(W D) D^{-1}, D = diag(√Î). The paper writes Z = X W,
    so its rows are the columns here.

    Reference:
        Y.-C. Hsu et al., "Language model compression with weighted low-rank factorization", ICLR 2022, arXiv
        2207.00112, equations 6 to 8.

    Example:
        The loss depends only on the second input.

        >>> import torch
        >>> weight, Phi = torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> stats = LayerStats([Fisher.from_total(Phi, count=1)])
        >>> Fwsvd(rank=1).compress(weight, stats).dense().detach().diagonal().round(decimals=4)
        tensor([0., 1.])
    """

    name = "fwsvd"
    paper = "Hsu et al., ICLR 2022, arXiv 2207.00112"
    needs = frozenset({Fisher})

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        return column_weighted_components(weight, fisher_weights(stats[Fisher].matrix))
