"""Random pruning, the baseline that any score has to beat."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.methods.base import digest
from laconic.methods.prune.base import Solver
from laconic.methods.prune.unstructured import UnstructuredPruning, solver_by_scores


@dataclass(frozen=True, kw_only=True)
class Random(UnstructuredPruning):
    """Prunes random weights; reads no data.

    As torch.nn.utils.prune's `random_unstructured`. The scores are drawn from the seed and the content of the matrix:
    one matrix always gets the same mask, two matrices of one shape get different ones.

    Args:
        sparsity: fraction of zeros in every matrix, those of an earlier step included; in place of `keep`.
        pattern: `N:M`, keep N weights of every M consecutive inputs, such as 2:4; in place of a sparsity.
        within: compare scores within the whole `matrix`, or within each `row` (output).
        cap: largest sparsity of any one matrix where one budget is shared by several.
        seed: seed of the random scores.

    Example:
        >>> Random(sparsity=0.75).compress(torch.ones(4, 4), LayerStats()).dense().sum().item()
        4.0
    """

    name = "random"
    paper = "torch.nn.utils.prune"
    needs = frozenset()

    seed: int = 0

    def scores(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Float[Tensor, "out in"]:
        return torch.rand(weight.shape, generator=generator_for(self.seed, weight)).to(weight.device)

    def solver(self, weight: Float[Tensor, "out in"], stats: LayerStats) -> Solver:
        return solver_by_scores(self, weight, stats)


def generator_for(seed: int, weight: Float[Tensor, "out in"]) -> torch.Generator:
    """A random generator that is seeded by `seed` and the content of the matrix.

    Example:
        >>> weight = torch.ones(2, 2)
        >>> torch.rand(1, generator=generator_for(0, weight)) == torch.rand(1, generator=generator_for(0, weight))
        tensor([True])
    """
    return torch.Generator().manual_seed((int(digest(weight)[:15], 16) + seed) % 2**63)
