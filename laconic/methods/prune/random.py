"""Random pruning: what is left of a model whose zeros lie anywhere; the least that any score has to beat.

As torch.nn.utils.prune's `random_unstructured`. The numbers are drawn from the seed and the content of the matrix, so
that matrices of one shape have their zeros in different places, and the same matrix always in the same.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import LayerStats
from laconic.methods.base import digest_of
from laconic.methods.prune.scored import Scored, masked
from laconic.methods.prune.size import Solver


@dataclass(frozen=True, kw_only=True)
class Random(Scored):
    """Weights go at random.

    seed: of what is drawn; matrices of other contents draw other numbers.
    """

    name = "random"
    paper = "torch.nn.utils.prune"
    needs = frozenset()

    seed: int = 0

    def scores(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Float[Tensor, "out in"]:
        return torch.rand(weight.shape, generator=generator_for(self.seed, weight)).to(weight.device)

    def solver(self, weight: Float[Tensor, "out in"], known: LayerStats) -> Solver:
        return masked(self, weight, known)


def generator_for(seed: int, weight: Float[Tensor, "out in"]) -> torch.Generator:
    """Random numbers that are always the same for this seed and this matrix."""
    return torch.Generator().manual_seed((int(digest_of(weight)[:15], 16) + seed) % 2**63)
