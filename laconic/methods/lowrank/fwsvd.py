"""FWSVD: singular values of the matrix whose input features are weighted by their Fisher information.

Paper: Y.-C. Hsu et al., "Language model compression with weighted low-rank factorization", ICLR 2022, eq. 6-8:
Î_j = Σ_i Φ_ij and D = diag(√Î) give Ŵ = SVD_r(W D) D^{-1}, which minimises Σ_ij Î_j (W − Ŵ)_ij². The paper writes
Z = X W, so its rows are our columns.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Fisher, LayerStats
from laconic.methods.lowrank.truncation import Truncation
from laconic.numerics.lowrank import Components, column_weighted_components

# An input that the loss never depended on has Î = 0 and no inverse; it counts this fraction of the mean instead.
LEAST_IMPORTANCE = 1e-6


def fisher_weights(Phi: Float[Tensor, "out in"]) -> Float[Tensor, " in"]:
    """D = √Î by input feature, bounded away from zero; all ones when nothing was measured."""
    importance = Phi.double().sum(0)
    mean = importance.mean()
    if mean <= 0:
        return importance.new_ones(len(importance))
    return (importance / mean).clamp(min=LEAST_IMPORTANCE).sqrt()


@dataclass(frozen=True, kw_only=True)
class Fwsvd(Truncation):
    """Fisher-weighted SVD."""

    name = "fwsvd"
    paper = "Hsu et al., ICLR 2022, arXiv 2207.00112"
    needs = frozenset({Fisher})

    def components(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Components:
        return column_weighted_components(weight, fisher_weights(known[Fisher].matrix))
