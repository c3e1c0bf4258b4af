"""RTN: every weight to the nearest value of the grid of its group.

The baseline of E. Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323. `clip` searches for the range of each group,
from all of it to a part (J. Lin et al., "AWQ", MLSys 2024, section 5.1); without it the range is all that they span. By
squared error alone the search clips so much that whole matrices shrink, and the model errs by more than without it; so
error along the weights counts twice, and from 4 bits on a range is narrowed only where that saves 30 % of the error
(`laconic.numerics.grid`).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.formats import Quantized
from laconic.methods.quantize.affine import Affine
from laconic.methods.quantize.size import Solver
from laconic.numerics.grid import codes_of


@dataclass(frozen=True, kw_only=True)
class Rtn(Affine):
    """Round to nearest; looks at no data."""

    name = "rtn"
    paper = "the baseline of Frantar et al., ICLR 2023"
    needs = frozenset()

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        def solve(bits: int) -> Quantized:
            grid = self.grid(weight, bits, known.support)
            return self.quantized(codes_of(weight, grid), grid, weight.dtype, known.support)

        return solve
