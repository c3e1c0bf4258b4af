"""Magnitude pruning: the smallest weights go, whatever they multiply.

Paper: S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks",
NeurIPS 2015, arXiv 1506.02626. The score is |w|, which is torch.nn.utils.prune's `l1_unstructured`.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.methods.prune.scored import Scored, masked
from laconic.methods.prune.size import Solver


@dataclass(frozen=True, kw_only=True)
class Magnitude(Scored):
    """The smallest weights go (L1)."""

    name = "magnitude"
    paper = "Han et al., NeurIPS 2015"
    needs = frozenset()

    def scores(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Float[Tensor, "out in"]:
        return weight.abs()

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        return masked(self, weight, known)
