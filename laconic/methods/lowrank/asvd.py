"""ASVD: singular values of the matrix whose input features are scaled by the size of their activations.

Paper: Z. Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
arXiv 2312.05821: S = diag((E|x_j|)^α) gives Ŵ = SVD_r(W S) S^{-1}, so that an outlier feature is kept more exactly.
The decomposition is exact here.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import AbsMean, LayerStats
from laconic.errors import must_be
from laconic.methods.lowrank.truncation import Truncation
from laconic.numerics.lowrank import Components, column_weighted_components

# An input that was always zero has no inverse scale; it counts this fraction of the mean activation instead.
LEAST_ACTIVATION = 1e-6


def activation_scales(activations: Float[Tensor, " in"], alpha: float) -> Float[Tensor, " in"]:
    """(E|x_j|)^α relative to the mean, bounded away from zero; all ones when no input was ever active."""
    activations = activations.double()
    mean = activations.mean()
    if mean <= 0:
        return activations.new_ones(len(activations))
    return (activations / mean).clamp(min=LEAST_ACTIVATION).pow(alpha)


@dataclass(frozen=True, kw_only=True)
class Asvd(Truncation):
    """Activation-aware SVD.

    alpha: how much the activations count: 0.5 is the paper's, 0 would be plain SVD.
    """

    name = "asvd"
    paper = "Yuan et al., arXiv 2312.05821"
    needs = frozenset({AbsMean})

    alpha: Annotated[float, Field(gt=0, le=2)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 2:
            raise must_be(f"{self.name}.alpha", "in (0, 2]", self.alpha)

    def components(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Components:
        return column_weighted_components(weight, activation_scales(known[AbsMean].vector, self.alpha))
