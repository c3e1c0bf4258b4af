"""YAQA: GPTQ's feedback along the rows, and down the columns too, so that outputs make up for each other.

Paper: A. Tseng, Z. Sun, C. De Sa, "Model-Preserving Adaptive Rounding", ICML 2026, arXiv 2505.22988, with the two
Kronecker factors of the curvature F ⊗ C that all methods here share, F shrunk towards its mean diagonal, and grids
fitted to the matrix itself, as those of `gptq` are at first: where all outputs hang together, a second fit lost more
as often as less. Rows and columns are taken in the order of the diagonals of F and C, largest first.

Of an embedding, C is diagonal, and errors are made up for within each column alone; where F is diagonal, as it is of a
wide head, it is `gptq`.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import must_be
from laconic.formats import Quantized
from laconic.methods.prune.kfac_prune import KfacPrune
from laconic.methods.quantize.feedback import Feedback
from laconic.methods.quantize.size import Solver
from laconic.numerics.obs import damped
from laconic.numerics.psd import shrink
from laconic.numerics.two_sided import TwoSided


@dataclass(frozen=True, kw_only=True)
class Yaqa(Feedback):
    """Rounding with feedback along rows and columns.

    shrink: regularises F, by this fraction of its mean diagonal.
    """

    name = "yaqa"
    paper = "Tseng et al., ICML 2026"
    needs = frozenset({InputCovariance, GradCovariance})

    shrink: Annotated[float, Field(gt=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrink <= 1:
            raise must_be(f"{self.name}.shrink", "in (0, 1]", self.shrink)

    @property
    def pruner(self) -> KfacPrune:
        return KfacPrune(sparsity=self.sparsity, pattern=self.pattern, damping=self.damping, shrink=self.shrink)

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        W, mask = self.start(weight, known)
        F, H = shrink(known[GradCovariance].matrix, self.shrink), damped(known[InputCovariance].matrix, self.damping)
        sides = TwoSided.of(F, H)

        def solve(bits: int) -> Quantized:
            rounded = sides.round(W, self.spacing(bits, W.shape[1]), mask)
            return self.quantized(rounded.codes, rounded.grid, weight.dtype, mask)

        return solve
