"""KFAC-SVD: min ½ tr(F E C E^T) over rank r, E = W − Ŵ, the second-order estimate of the KL divergence.

Thoma et al., ICML 2026; the curvature F ⊗ C is that of J. Martens, R. Grosse, arXiv 1503.05671.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import Components, TwoSidedTerms, balance, separate_losses, two_sided_terms
from laconic.numerics.moments import shrink


@dataclass(frozen=True, kw_only=True)
class KfacSvd(TruncationMethod):
    """Low rank by the second-order estimate of the KL divergence to the original.

    Minimises ½ tr(F E C E^T), E = W − Ŵ, with C = E[x x^T] of the inputs and F = E[g g^T] of the gradients at the
    outputs, by Ŵ = F^{-1/2} SVD_r(F^{1/2} W C^{1/2}) C^{-1/2}. Only one root is taken, on the smaller side of W.

    Args:
        shrink: F is shrunk towards the identity times its mean diagonal by this fraction, as it is estimated from few
            predictions.

    Reference:
        Thoma et al., ICML 2026; the curvature is that of J. Martens, R. Grosse, "Optimizing Neural Networks with
        Kronecker-factored Approximate Curvature", arXiv 1503.05671.

    Example:
        >>> import torch
        >>> weight, C = torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2)
        >>> F = GradCovariance.from_total(torch.diag(torch.tensor([1.0, 100.0])), count=1)
        >>> stats = LayerStats([InputCovariance.from_moment(C, count=1), F])
        >>> KfacSvd(rank=1, shrink=0.01).compress(weight, stats).dense().detach().diagonal().round(decimals=4)
        tensor([0., 1.])
    """

    name = "kfac-svd"
    paper = "Thoma et al., ICML 2026"
    needs = frozenset({InputCovariance, GradCovariance})

    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        A, B, _ = self._terms(weight, stats)
        return balance(Components(A, B))

    def truncation_losses(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, " ranks"]:
        """The predicted losses of keeping the first r terms, for every r, in nats per prediction.

        F̃ = (1 − α) F + α f I has the terms of which A^T F̃ A = I and B C B^T is diagonal. Losses under F and C add up
        too, and a_i^T F a_i = (1 − α f ‖a_i‖²) / (1 − α): no product with F is needed.
        """
        F = stats[GradCovariance].matrix
        level = (F if F.ndim == 1 else F.diagonal()).mean()
        del F
        if self.shrink == 1:
            return super().truncation_losses(weight, stats)
        A, B, values = self._terms(weight, stats)
        self.keep_expansion(weight, stats, balance(Components(A, B)))
        under_F = (1 - self.shrink * level * A.square().sum(0)) / (1 - self.shrink)
        return separate_losses(0.5 * values * under_F.clamp(min=0) * (level > 0))

    def _terms(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> TwoSidedTerms:
        F = shrink(stats[GradCovariance].matrix, self.shrink)
        return two_sided_terms(weight, F, stats[InputCovariance].matrix)
