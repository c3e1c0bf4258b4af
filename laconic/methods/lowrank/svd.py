"""Truncated SVD: Ŵ = U_r S_r V_r^T, the best rank r in the Frobenius norm (C. Eckart, G. Young, Psychometrika 1936)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import Components, svd_components


@dataclass(frozen=True, kw_only=True)
class Svd(TruncationMethod):
    """Truncated singular value decomposition of the weights; reads no data.

    Ŵ = U_r S_r V_r^T minimises ‖W − Ŵ‖_F over matrices of rank r.

    Reference:
        C. Eckart, G. Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.

    Example:
        >>> import torch
        >>> weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> Svd(rank=2).compress(weight, LayerStats()).dense().detach().diagonal().round(decimals=4)
        tensor([3., 2., 0.])
    """

    name = "svd"
    paper = "Eckart & Young 1936"
    needs = frozenset()

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        return svd_components(weight)
