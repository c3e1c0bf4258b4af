"""GPTQ: column by column to the nearest value of the grid, each error made up for by the columns still to come.

Paper: E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023, arXiv 2210.17323, with H = C + λ I. Ranges are searched for, an error of the
column j counting 1 / [H^{-1}]_jj: what it costs once the others have made up for it. With `act_order`, which the
paper's code has as an option, all grids are fitted before the sweep and then, which the paper does not do, again to the
weights as it met them, for what earlier columns leave spreads them wider. Without it, that of a group is fitted when it
is reached.

Inputs of one-hot rows never occur together, so of an embedding nothing can be made up for, and it is rounded as `rtn`
does.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import InputCovariance, LayerStats
from laconic.formats import Quantized
from laconic.methods.prune.kfac_prune import KfacPrune
from laconic.methods.quantize.feedback import Feedback
from laconic.methods.quantize.size import Solver
from laconic.numerics.gptq import Order, Rounded, gptq
from laconic.numerics.grid import codes_of, fit_grid
from laconic.numerics.obs import damped


@dataclass(frozen=True, kw_only=True)
class Gptq(Feedback):
    """Rounding with feedback along the rows.

    act_order: columns whose inputs are largest come first.
    """

    name = "gptq"
    paper = "Frantar et al., ICLR 2023"
    needs = frozenset({InputCovariance})

    act_order: bool = True

    @property
    def pruner(self) -> KfacPrune:
        return KfacPrune(sparsity=self.sparsity, pattern=self.pattern, gradients=False, damping=self.damping)

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        W, mask = self.start(weight, known)
        H = damped(known[InputCovariance].matrix, self.damping)
        order = Order.of(H, self.act_order) if H.ndim == 2 else None

        def solve(bits: int) -> Quantized:
            spacing = self.spacing(bits, W.shape[1])
            if order is None:
                grid = fit_grid(W, spacing, None, mask)
                rounded = Rounded(codes_of(W, grid), grid)
            else:
                rounded = gptq(W, order, spacing, mask)
            return self.quantized(rounded.codes, rounded.grid, weight.dtype, mask)

        return solve
