"""What a method is given to solve for one matrix: which matrix to approximate, and what is known of it.

By itself that is the layer's own weight. A walk gives another: the matrix that would bring the outputs back to those of
the dense model from inputs that carry the errors of earlier layers (`laconic.calibrate.anchor`). As the least squares
problem around that matrix has the same form, every method solves it as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats, stacked


class Means(NamedTuple):
    """E[x] (in,) of the inputs and E[y] (out,) of the outputs to be reached, bias included."""

    x: Float[Tensor, " in"]
    y: Float[Tensor, " out"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """weight (out, in) is to be approximated; `means` are given where the bias may move to absorb the mean error."""

    weight: Float[Tensor, "out in"]
    known: LayerStats
    means: Means | None = None

    def bias(self, approximation: Float[Tensor, "out in"]) -> Float[Tensor, " out"] | None:
        """b̂ = E[y] − Ŵ E[x], which leaves no mean error; None where the layer's own bias stays."""
        return None if self.means is None else self.means.y - approximation.double() @ self.means.x


def stack(problems: Sequence[Problem]) -> Problem:
    """The problem of matrices that read one input, written one below the other."""
    if len(problems) == 1:
        return problems[0]
    means = [problem.means for problem in problems if problem.means is not None]
    return Problem(
        weight=torch.cat([problem.weight for problem in problems]),
        known=stacked([problem.known for problem in problems]),
        means=Means(means[0].x, torch.cat([mean.y for mean in means])) if len(means) == len(problems) else None,
    )
