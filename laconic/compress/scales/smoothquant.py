"""SmoothQuant: inputs whose largest values are rare are made smaller, for activations of 8 bits.

Paper: G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML
2023, arXiv 2211.10438, equation (4): s_j = max |x_j|^α / max |w_j|^{1−α}, over all matrices that read x. Inputs are
divided by s_j, columns multiplied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import AbsMax, LayerStats, Statistic
from laconic.compress.scales.step import Rescale
from laconic.errors import must_be
from laconic.model.scale_folding import Absorber


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Rescale):
    """Move what is hard to round from inputs to weights.

    alpha: how much of it; 1 is all, 0 the other way round.
    """

    name = "smoothquant"

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise must_be("alpha", "in [0, 1]", self.alpha)

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        return frozenset({AbsMax})

    def scales(self, absorber: Absorber, known: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        inputs = _largest(known[0][AbsMax].vector, absorber)
        columns = torch.stack([site.weight().double().abs().amax(0) for site in absorber.readers]).amax(0)
        weights = _largest(columns, absorber)
        s = inputs.pow(self.alpha) / weights.pow(1 - self.alpha)
        # An input that was never active, or that nothing looks at, has nothing to move.
        return torch.where((inputs > 0) & (weights > 0), s, 1)


def _largest(values: Float[Tensor, " in"], absorber: Absorber) -> Float[Tensor, " scales"]:
    """Of the columns that share a scale."""
    return values.new_zeros(absorber.count).scatter_reduce_(0, absorber.columns, values, "amax")
