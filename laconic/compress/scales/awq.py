"""AWQ's scales, taken up by what makes the inputs, so that nothing is added when the model runs.

Paper: J. Lin et al., "AWQ", MLSys 2024, arXiv 2306.00978, equations (4) and (5); how they are found is in
`laconic.numerics.scaling`. Unlike the method `awq`, all matrices that read one input get the same scales, and a matrix
whose input nothing can take them up for gets none. A later step rounds; `bits` and `group_size` are what it is to use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import AbsMean, GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.compress.scales.step import Rescale
from laconic.errors import UserError
from laconic.methods import Awq
from laconic.model import Site
from laconic.model.scale_folding import Absorber
from laconic.numerics.grid import Spacing
from laconic.numerics.scaling import Scaled, best_scales


@dataclass(frozen=True, kw_only=True)
class AwqScale(Rescale):
    """Scale columns of active inputs for the rounding that follows.

    bits:       of the rounding that follows.
    group_size: columns of a row that share a scale there, or `channel`, `tensor`.
    symmetric:  no zero points are stored there.
    gradients:  judge by the Fisher information of the outputs too.
    """

    name = "awq-scale"

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    group_size: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = 64
    symmetric: bool = False
    gradients: bool = True

    def __post_init__(self) -> None:
        try:
            _ = self._method
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{Awq.name}.")) from error

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        return self._method.asks

    @property
    def _method(self) -> Awq:
        return Awq(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, gradients=self.gradients)

    def scales(self, absorber: Absorber, known: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        columns = absorber.columns
        width = len(columns)
        spacing = Spacing(self.bits, self._method.group_of(width), self.symmetric)
        activity = known[0][AbsMean].vector
        # Columns that share a scale are as active as they are on average.
        sums = activity.new_zeros(absorber.count).index_add_(0, columns, activity)
        shared = (sums / columns.bincount(minlength=absorber.count))[columns]
        readers = [self._scaled(site, what) for site, what in zip(absorber.readers, known, strict=True)]
        s = best_scales(readers, shared, spacing, weighted=False)
        return s.new_ones(absorber.count).index_copy_(0, columns, s)

    def _scaled(self, site: Site, known: LayerStats) -> Scaled:
        weight = site.weight()
        alike = torch.ones(len(weight), device=weight.device)
        return Scaled(weight, known[GradCovariance].matrix if self.gradients else alike, known[InputCovariance].matrix)
