"""Magnitude pruning: the smallest weights become zero."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.methods.prune.base import Solver
from laconic.methods.prune.unstructured import UnstructuredPruning, solver_by_scores


@dataclass(frozen=True, kw_only=True)
class Magnitude(UnstructuredPruning):
    """Prunes the smallest weights; reads no data.

    The score is |w|, as in torch.nn.utils.prune's `l1_unstructured`.

    Args:
        sparsity: fraction of zeros in every matrix, those of an earlier step included; in place of `keep`.
        pattern: `N:M`, keep N weights of every M consecutive inputs, such as 2:4; in place of a sparsity.
        within: compare scores within the whole `matrix`, or within each `row` (output).
        cap: largest sparsity of any one matrix where one budget is shared by several.

    Reference:
        S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections for Efficient Neural Networks",
        NeurIPS 2015, arXiv 1506.02626.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
        >>> Magnitude(sparsity=0.5).compress(weight, LayerStats()).dense().tolist()
        [[0.0, -4.0], [3.0, 0.0]]
    """

    name = "magnitude"
    paper = "Han et al., NeurIPS 2015"
    needs = frozenset()

    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        return weight.abs()

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        return solver_by_scores(self, weight, stats)
