"""AWQ: columns of active inputs are made larger before they are rounded to nearest, and smaller again afterwards.

Paper: J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024,
arXiv 2306.00978, equations (4) and (5): Ŵ = Q(W diag s)(diag s)^{-1}, s_j = (mean |x_j|)^a. Of the 20 values of a that
the paper tries, the one with the least predicted loss ½ tr(F E C E^T) is taken in place of that with the least error of
a block. For each of them ranges are searched for, as in the paper's section 5.1, each column counting C_jj / s_j².

(diag s)^{-1} is kept with the codes, a number of 16 bits for each column. The step `awq-scale` puts it into the norm or
the matrix before, where there is one that can take it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import AbsMean, GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.formats import Quantized
from laconic.methods.quantize.affine import Affine
from laconic.methods.quantize.size import Solver
from laconic.numerics.grid import Spacing
from laconic.numerics.scaling import Scaled, best_scales, rounded


@dataclass(frozen=True, kw_only=True)
class Awq(Affine):
    """Rounding of scaled columns.

    gradients: judge by the Fisher information of the outputs too.
    """

    name = "awq"
    paper = "Lin et al., MLSys 2024"
    needs = frozenset({AbsMean, InputCovariance, GradCovariance})

    scales_columns = True

    gradients: bool = True

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        return self.needs if self.gradients else frozenset({AbsMean, InputCovariance})

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        support = known.support
        F = known[GradCovariance].matrix if self.gradients else torch.ones(len(weight), device=weight.device)
        reader = Scaled(weight if support is None else weight * support, F, known[InputCovariance].matrix, support)

        def solve(bits: int) -> Quantized:
            spacing = Spacing(bits, self.group_of(weight.shape[1]), self.symmetric, self.clip)
            s = best_scales([reader], known[AbsMean].vector, spacing, weighted=True)
            codes, grid = rounded(reader, s, spacing, weighted=True)
            layer = self.quantized(codes, grid, weight.dtype, support)
            layer.scale_columns(1 / s)
            return layer

        return solve
