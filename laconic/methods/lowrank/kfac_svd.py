"""KFAC-SVD: the best rank r for the model's predictions, to second order.

Paper: Thoma et al., ICML 2026; the curvature is that of J. Martens, R. Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", arXiv 1503.05671. With F shrunk towards its mean diagonal,
Ŵ = F^{-1/2} SVD_r(F^{1/2} W C^{1/2}) C^{-1/2} minimises ½ tr(F E C E^T), the predicted KL divergence; solved in a form
that takes one root only, on the smaller side of W.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import must_be
from laconic.methods.lowrank.truncation import Truncation
from laconic.numerics.lowrank import Components, two_sided_components
from laconic.numerics.psd import shrink


@dataclass(frozen=True, kw_only=True)
class KfacSvd(Truncation):
    """Two-sided low rank: inputs and output gradients both count.

    shrink: regularises F, by this fraction of its mean diagonal.
    """

    name = "kfac-svd"
    paper = "Thoma et al., ICML 2026"
    needs = frozenset({InputCovariance, GradCovariance})

    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrink <= 1:
            raise must_be(f"{self.name}.shrink", "in (0, 1]", self.shrink)

    def components(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Components:
        return two_sided_components(
            weight, shrink(known[GradCovariance].matrix, self.shrink), known[InputCovariance].matrix
        )
