"""COALA: low rank by least squares at the layer's outputs, regularized for few calibration inputs.

Paper: U. Parkina and M. Rakhuba, "COALA: Numerically Stable and Efficient Framework for Context-Aware Low-Rank
Approximation", NeurIPS 2025, the regularized problem:

    min over rank r of ‖(W − Ŵ) X‖_F² + μ ‖W − Ŵ‖_F²

This is ‖(W − Ŵ) S‖_F² with S S^T = C + μ I and C = X X^T / n, whose solution is the truncated SVD of W S, times S^{-1}.
The paper takes S from a QR decomposition of the inputs; here it is taken from C, which μ > 0 makes well conditioned.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import InputCovariance, LayerStats
from laconic.methods import TruncationMethod
from laconic.numerics.lowrank import Components


@dataclass(frozen=True, kw_only=True)
class Coala(TruncationMethod):
    """Low rank by least squares at the layer's outputs, regularized by the error of the weights.

    Args:
        mu: weight of the error of the weights, as a fraction of the mean squared input.

    Example:
        >>> weight, C = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 100.0]))
        >>> stats = LayerStats([InputCovariance.from_moment(C, count=10)])
        >>> Coala(rank=1, mu=0.01).compress(weight, stats).dense().diagonal().round(decimals=4)
        tensor([0., 1.])
        >>> Coala(rank=1, mu=100.0).compress(weight, stats).dense().diagonal().round(decimals=4)
        tensor([3., 0.])
    """

    name = "coala"
    paper = "Parkina & Rakhuba, NeurIPS 2025"
    needs = frozenset({InputCovariance})

    mu: Annotated[float, Field(gt=0)] = 0.01

    def components(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Components:
        """A = U Σ and B = V^T S^{-1} from W S = U Σ V^T; their first r terms are the optimum of rank r."""
        C = stats[InputCovariance].matrix.double()
        # The covariance of a word embedding is diagonal, and stored as a vector.
        C = torch.diag(C) if C.ndim == 1 else C
        # Without any input C is zero, and this is the plain SVD.
        mean = float(C.diagonal().mean()) or 1.0
        variances, Q = torch.linalg.eigh(C + self.mu * mean * torch.eye(len(C), dtype=C.dtype, device=C.device))
        scale = variances.clamp(min=self.mu * mean / 2).sqrt()
        U, singular, Vh = torch.linalg.svd(weight.double() @ (Q * scale), full_matrices=False)
        return Components(U * singular, Vh @ (Q / scale).T)
