"""ASVD: Ŵ = SVD_r(W S) S^{-1} with S = diag((E|x_j|)^α) (Z. Yuan et al., arXiv 2312.05821)."""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import AbsMean, LayerStats
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import Components, column_weighted_components

# An input that is always zero would have no inverse scale; it counts this fraction of the mean activation instead.
LEAST_ACTIVATION = 1e-6


def activation_scales(activations: Float[Tensor, " in"], alpha: float) -> Float[Tensor, " in"]:
    """The scale of each input feature, (E|x_j|)^α relative to the mean.

    Args:
        activations: E|x_j| ≥ 0.
        alpha: the exponent.

    Returns:
        Positive scales in fp64; ones if no input was ever active.

    Example:
        >>> import torch
        >>> activation_scales(torch.tensor([0.5, 1.5]), alpha=1.0)
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    activations = activations.double()
    mean = activations.mean()
    if mean <= 0:
        return activations.new_ones(len(activations))
    return (activations / mean).clamp(min=LEAST_ACTIVATION).pow(alpha)


@dataclass(frozen=True, kw_only=True)
class Asvd(TruncationMethod):
    """SVD with each input feature scaled by its mean activation.

    Ŵ = SVD_r(W S) S^{-1} with S = diag((E|x_j|)^α), so that columns of active inputs are kept more exactly. The
    decomposition is exact.

    Args:
        alpha: exponent of the mean activations; 0.5 as in the paper. Near 0 the method is plain SVD.

    Reference:
        Z. Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
        arXiv 2312.05821.

    Example:
        >>> import torch
        >>> weight, activations = torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([1.0, 100.0])
        >>> stats = LayerStats([AbsMean.from_total(activations, count=1)])
        >>> Asvd(rank=1).compress(weight, stats).dense().detach().diagonal().round(decimals=4)
        tensor([0., 1.])
    """

    name = "asvd"
    paper = "Yuan et al., arXiv 2312.05821"
    needs = frozenset({AbsMean})

    alpha: Annotated[float, Field(gt=0, le=2)] = 0.5

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        return column_weighted_components(weight, activation_scales(stats[AbsMean].vector, self.alpha))
