"""AWQ: Ŵ = Q(W diag s)(diag s)^{-1}, rounding to nearest with columns of active inputs scaled up by s_j = (mean
|x_j|)^a.

J. Lin et al., "AWQ: Activation-aware Weight Quantization", MLSys 2024, arXiv 2306.00978, equations 4 and 5.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import AbsMean, GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.formats import Quantized
from laconic.methods.quantize.base import AffineQuantization, Solver
from laconic.numerics.scaling import ScaledMatrix, quantize_scaled, search_scales


@dataclass(frozen=True, kw_only=True)
class Awq(AffineQuantization):
    """Rounds to nearest after scaling each column by the activity of its input.

    Ŵ = Q(W diag s)(diag s)^{-1}, s_j = (mean |x_j|)^a. Among the paper's 20 values of a, the one with the least
    predicted loss ½ tr(F E C E^T) is chosen; the paper compares the errors of a block. The search for ranges weights
    the error of column j by C_jj / s_j². (diag s)^{-1} is stored with the codes, 16 bits for each column. The step
    `awq-scale` folds it into the preceding norm or matrix where possible.

    Args:
        gradients: weight the outputs by their Fisher information F in the predicted loss.

    Reference:
        J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024,
        arXiv 2306.00978, equations 4 and 5, section 5.1.

    Example:
        >>> activations = torch.tensor([1.0, 1.0, 1.0, 1.0])
        >>> stats = LayerStats([AbsMean.from_total(activations, 1), InputCovariance.from_moment(torch.eye(4), count=1)])
        >>> weight = torch.tensor([[0.0, 1.1, 1.9, 3.0]])
        >>> Awq(bits=2, clip=False, gradients=False).compress(weight, stats).dense()
        tensor([[0., 1., 2., 3.]])
    """

    name = "awq"
    paper = "Lin et al., MLSys 2024"
    needs = frozenset({AbsMean, InputCovariance, GradCovariance})

    scales_columns = True

    gradients: bool = True

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        return self.needs if self.gradients else frozenset({AbsMean, InputCovariance})

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        support = stats.support
        F = stats[GradCovariance].matrix if self.gradients else torch.ones(len(weight), device=weight.device)
        matrix = ScaledMatrix(
            weight if support is None else weight * support, F, stats[InputCovariance].matrix, support
        )

        def solve(bits: int) -> Quantized:
            spec = self.grid_spec(bits, weight.shape[1])
            s = search_scales([matrix], stats[AbsMean].vector, spec, weighted=True)
            result = quantize_scaled(matrix, s, spec, weighted=True)
            layer = Quantized.from_codes(result.codes, result.grid, self.symmetric, weight.dtype, support)
            layer.scale_columns(1 / s)
            return layer

        return solve
