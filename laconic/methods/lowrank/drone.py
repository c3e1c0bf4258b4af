"""DRONE: min ‖(W − Ŵ) X‖_F over rank r, X the calibration inputs (P. Chen et al., NeurIPS 2021, theorem 1)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import InputCovariance, LayerStats
from laconic.methods.lowrank.base import TruncationMethod
from laconic.numerics.lowrank import Components, two_sided_components


@dataclass(frozen=True, kw_only=True)
class Drone(TruncationMethod):
    """Low rank by least squares at the layer's outputs.

    Minimises ‖(W − Ŵ) X‖_F over rank r, X the calibration inputs. With U_r the leading eigenvectors of W C W^T,
    C = E[x x^T], the solution is Ŵ = U_r U_r^T W. C is never inverted and may be singular.

    Reference:
        P. Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021, theorem 1; in the
        projection form of Swift-SVD, 2026, theorem 3.1.

    Example:
        The second input is ten times as large, so the smaller weight is the one that is kept.

        >>> weight, C = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 100.0]))
        >>> stats = LayerStats([InputCovariance.from_moment(C, count=10)])
        >>> Drone(rank=1).compress(weight, stats).dense().detach().diagonal().round(decimals=4)
        tensor([0., 1.])
    """

    name = "drone"
    paper = "Chen et al., NeurIPS 2021"
    needs = frozenset({InputCovariance})

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        identity = torch.ones(len(weight), dtype=torch.float64, device=weight.device)
        return two_sided_components(weight, identity, stats[InputCovariance].matrix)
