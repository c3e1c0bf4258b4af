"""DRONE: the best rank r for the layer's outputs on real inputs.

Paper: P. Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, theorem 1:
min ‖W X − Ŵ X‖_F over rank r. Here in the projection form (Swift-SVD, 2026, theorem 3.1): with U_r the leading
eigenvectors of W C W^T, Ŵ = U_r U_r^T W. No inverse of C is taken, so C may be singular; the eigenproblem is that of
the smaller side.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import InputCovariance, LayerStats
from laconic.methods.lowrank.truncation import Truncation
from laconic.numerics.lowrank import Components, two_sided_components


@dataclass(frozen=True, kw_only=True)
class Drone(Truncation):
    """Data-aware low rank: least squares at the layer's output."""

    name = "drone"
    paper = "Chen et al., NeurIPS 2021"
    needs = frozenset({InputCovariance})

    def components(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Components:
        identity = torch.ones(len(weight), dtype=torch.float64, device=weight.device)
        return two_sided_components(weight, identity, known[InputCovariance].matrix)
