"""Wanda: a weight is worth what it adds to the output, its size times that of its input.

Paper: M. Sun, Z. Liu, A. Bair, J. Z. Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR
2024, arXiv 2306.11695, equation 1: the score is |w_ij| ‖x_j‖, compared within each output row; here ‖x_j‖ is the root
of C_jj = E[x_j²]. With `gradients` it is ½ w_ij² F_ii C_jj, what removing the weight alone adds to the predicted loss,
so that rows compare too (Y. LeCun, J. Denker, S. Solla, "Optimal Brain Damage", NeurIPS 1989).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.methods.prune.moments import of_inputs, of_outputs
from laconic.methods.prune.scored import Scored, Within, masked
from laconic.methods.prune.size import Solver


@dataclass(frozen=True, kw_only=True)
class Wanda(Scored):
    """Weights times inputs; what stays is not changed.

    gradients: weigh outputs by the Fisher information too, which is the same for all weights of a row, and so of use
               where `within` is matrix.
    """

    name = "wanda"
    paper = "Sun et al., ICLR 2024"
    needs = frozenset({InputCovariance})

    within: Within = "row"
    gradients: bool = False

    @property
    def asks(self) -> frozenset[type[Statistic]]:
        return self.needs | {GradCovariance} if self.gradients else self.needs

    def scores(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Float[Tensor, "out in"]:
        if self.gradients:
            return 0.5 * weight.double().square() * of_outputs(known) * of_inputs(known)
        return weight.double().abs() * of_inputs(known).sqrt()

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        return masked(self, weight, known)
