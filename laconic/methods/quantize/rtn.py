"""RTN: every weight is rounded to the nearest value s (c − z) of the grid of its group.

The baseline of E. Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.formats import PackedCodes
from laconic.methods.quantize.base import Solver
from laconic.methods.quantize.blocks import BlockQuantization
from laconic.numerics.quantizer import nearest


@dataclass(frozen=True, kw_only=True)
class Rtn(BlockQuantization):
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
        def solve(bits: int) -> PackedCodes:
            spec = self.quantizer_spec(bits, weight.shape[1], stats.support)
            return self.to_quantized(nearest(weight, spec, None, stats.support), weight.dtype, stats.support)

        return solve
