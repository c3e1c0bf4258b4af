"""YAQA: min ½ tr(F E H E^T) by rounding with compensation along rows and down columns.

A. Tseng, Z. Sun, C. De Sa, "Model-Preserving Adaptive Rounding", ICML 2026, arXiv 2505.22988.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.formats import PackedCodes
from laconic.methods.prune.kfac_prune import KfacPrune
from laconic.methods.quantize.base import Solver
from laconic.methods.quantize.gptq import FeedbackQuantization
from laconic.numerics.gptq import ColumnOrder
from laconic.numerics.ldlq import TwoSidedRounding
from laconic.numerics.moments import shrink


@dataclass(frozen=True, kw_only=True)
class Yaqa(FeedbackQuantization):
    """Rounds weight by weight; later columns and later rows compensate for each error.

    The curvature is F ⊗ C, the two Kronecker factors that all methods here share. Grids are fitted to the matrix
    itself, once: a second fit, as in `gptq`, raised the loss as often as it lowered it. Rows and columns are rounded in
    the order of the diagonals of F and C, largest first. For a word embedding, where C is diagonal, errors are
    compensated only within each column; where F is diagonal, as for a wide head, the method is `gptq`.

    Args:
        shrink: F is shrunk towards the identity times its mean diagonal by this fraction.

    Reference:
        A. Tseng, Z. Sun, C. De Sa, "Model-Preserving Adaptive Rounding", ICML 2026, arXiv 2505.22988.

    Example:
        >>> import torch
        >>> F = GradCovariance.from_total(torch.eye(1), count=1)
        >>> stats = LayerStats([InputCovariance.from_moment(torch.eye(4), count=10), F])
        >>> weight = torch.tensor([[0.0, 1.1, 1.9, 3.0]])
        >>> Yaqa(bits=2, clip=False).compress(weight, stats).dense()
        tensor([[0., 1., 2., 3.]])
    """

    name = "yaqa"
    paper = "Tseng et al., ICML 2026"
    needs = frozenset({InputCovariance, GradCovariance})

    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1

    @property
    def pruner(self) -> KfacPrune:
        return KfacPrune(sparsity=self.sparsity, pattern=self.pattern, damping=self.damping, shrink=self.shrink)

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        W, mask = self.prune_first(weight, stats)
        F = shrink(stats[GradCovariance].matrix, self.shrink)
        rows = ColumnOrder.from_hessian(F, exact=True) if F.ndim == 2 else None
        sides = TwoSidedRounding(rows, self.column_order(stats, exact=rows is not None))

        def solve(bits: int) -> PackedCodes:
            spec = self.quantizer_spec(bits, W.shape[1], mask)
            return self.to_quantized(sides.round(W, spec, mask), weight.dtype, mask)

        return solve
