"""Truncated SVD: the best rank r in the Frobenius norm, blind to the data.

Paper: C. Eckart, G. Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936:
Ŵ = U_r S_r V_r^T minimises ‖W − Ŵ‖_F over rank r.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.methods.lowrank.truncation import Truncation
from laconic.numerics.lowrank import Components, svd_components


@dataclass(frozen=True, kw_only=True)
class Svd(Truncation):
    """Truncated singular value decomposition."""

    name = "svd"
    paper = "Eckart & Young 1936"
    needs = frozenset()

    def components(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Components:
        return svd_components(weight)
