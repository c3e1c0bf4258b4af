"""Wanda: prune by the score |w_ij| ‖x_j‖, a weight times the norm of its input.

M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv 2306.11695.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.methods.prune.base import UnstructuredPruning, Within
from laconic.numerics.moments import floored_diagonal


@dataclass(frozen=True, kw_only=True)
class Wanda(UnstructuredPruning):
    """Prunes weights by their size times that of their input; the others do not change.

    The score is |w_ij| ‖x_j‖, compared within each output row, ‖x_j‖ the root of C_jj = E[x_j²]. With `gradients` it is
    ½ w_ij² F_ii C_jj, the increase of the predicted loss if only this weight is removed, so that rows are comparable
    too.

    Args:
        gradients: weight the rows by the Fisher information F_ii of their outputs, as optimal brain damage does. It is
            the same for all weights of a row, so it matters only where `within` is matrix.

    Reference:
        M. Sun, Z. Liu, A. Bair, J. Z. Kolter, "A Simple and Effective Pruning Approach for Large Language Models",
        ICLR 2024, arXiv 2306.11695, equation 1; Y. LeCun, J. Denker, S. Solla, "Optimal Brain Damage", NeurIPS 1989.

    Example:
        The second input is ten times as large, so its smaller weight is kept.

        >>> import torch
        >>> stats = LayerStats([InputCovariance.from_moment(torch.diag(torch.tensor([1.0, 100.0])), count=10)])
        >>> Wanda(sparsity=0.5).compress(torch.tensor([[3.0, 1.0]]), stats).dense().tolist()
        [[0.0, 1.0]]
    """

    name = "wanda"
    paper = "Sun et al., ICLR 2024"
    needs = frozenset({InputCovariance})

    within: Within = "row"
    gradients: bool = False

    @property
    def required_statistics(self) -> frozenset[type[Statistic]]:
        return self.needs | {GradCovariance} if self.gradients else self.needs

    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        inputs = floored_diagonal(stats[InputCovariance].matrix)
        if not self.gradients:
            return weight.double().abs() * inputs.sqrt()
        return 0.5 * weight.double().square() * floored_diagonal(stats[GradCovariance].matrix)[:, None] * inputs
