"""RTN: every weight is rounded to the nearest value s (c − z) of the grid of its group.

The baseline of E. Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.formats import Quantized
from laconic.methods.quantize.base import AffineQuantization, Solver
from laconic.numerics.grid import QuantizedWeight, fit_grid, quantize


@dataclass(frozen=True, kw_only=True)
class Rtn(AffineQuantization):
    """Round to nearest; reads no data.

    With `clip` the range of each group is the part of its span with the least squared error. The squared
    error alone would clip so much that whole matrices shrink. So error along the weights counts twice, and from 4 bits
    on a range is narrowed only where that saves 30 % of the error (`laconic.numerics.grid`).

    Reference:
        The baseline of E. Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323; clipping: J. Lin et al., "AWQ", MLSys
        2024, arXiv 2306.00978, section 5.1.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.0, 1.1, 1.9, 3.0]])
        >>> Rtn(bits=2, clip=False).compress(weight, LayerStats()).dense()
        tensor([[0., 1., 2., 3.]])
    """

    name = "rtn"
    paper = "the baseline of Frantar et al., ICLR 2023"
    needs = frozenset()

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        def solve(bits: int) -> Quantized:
            grid = fit_grid(weight, self.grid_spec(bits, weight.shape[1]), None, stats.support)
            return self.to_quantized(QuantizedWeight(quantize(weight, grid), grid), weight.dtype, stats.support)

        return solve
