"""What both steps do: measure, choose the scales of every place that can take them up, and put them in.

The model computes what it did before, but for rounding; what changes is how well its matrices, or what they read, can
be put into few bits by a later step.

SmoothQuant: inputs whose largest values are rare are made smaller, for activations of 8 bits.

Paper: G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML
2023, arXiv 2211.10438, equation (4): s_j = max |x_j|^α / max |w_j|^{1−α}, over all matrices that read x. Inputs are
divided by s_j, columns multiplied.

AWQ's scales, taken up by what makes the inputs, so that nothing is added when the model runs.

Paper: J. Lin et al., "AWQ", MLSys 2024, arXiv 2306.00978, equations (4) and (5); how they are found is in
`laconic.numerics.scaling`. Unlike the method `awq`, all matrices that read one input get the same scales, and a matrix
whose input nothing can take them up for gets none. A later step rounds; `bits` and `group_size` are what it is to use.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from laconic.calibrate import (
    AbsMax,
    AbsMean,
    Calibration,
    GradCovariance,
    InputCovariance,
    LayerStats,
    Statistic,
    collect_stats,
)
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError, must_be
from laconic.methods import Awq
from laconic.model import LanguageModel, Site
from laconic.model.scale_folding import Absorber, find_absorbers, fold_scales
from laconic.numerics.grid import GridSpec
from laconic.numerics.scaling import ScaledMatrix, search_scales


@dataclass(frozen=True, kw_only=True)
class Rescale(Step):
    """Multiply columns of projections, and divide what makes their inputs."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[type[Statistic]]:
        """The statistics that choosing asks for."""

    @abstractmethod
    def scales(self, absorber: Absorber, stats: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        """The scales, all above zero; `stats` is of each of its readers."""

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        if not find_absorbers(lm):
            raise UserError(
                f"The step '{self.name}' finds nothing in this '{lm.model.config.model_type}' that can take up "
                "scales: no norm, value projection or gate feeds dense projections alone; put the step before those "
                "that compress, or leave it out."
            )

    def dry_run(self, lm: LanguageModel) -> None:
        """Scales change no structure."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Scale all that can be scaled; the sites of the outcome are those whose columns were.

        Raises:
            UserError: data is missing or empty, or nothing in `lm` can take up scales.
        """
        if data is None:
            raise UserError(f"The step '{self.name}' needs calibration data; name a source of it.")
        self.check(lm)
        absorbers = find_absorbers(lm)
        sites = [site for absorber in absorbers for site in absorber.readers]
        nbytes = lm.stored_nbytes(sites)
        # Scales change the inputs of their own readers alone, so that one measurement serves all.
        stats = collect_stats(lm, data, self.needs, sites)
        for absorber in data.track(absorbers, "Scaling the inputs"):
            fold_scales(lm, absorber, self.scales(absorber, [stats[site.name] for site in absorber.readers]))
        return Outcome(plan={}, before=nbytes, after=dict(nbytes))


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Rescale):
    """Move what is hard to round from inputs to weights.

    alpha: how much of it; 1 is all, 0 the other way round.
    """

    name = "smoothquant"
    family = "quantization"

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise must_be("alpha", "in [0, 1]", self.alpha)

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        return frozenset({AbsMax})

    def scales(self, absorber: Absorber, stats: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        inputs = _largest(stats[0][AbsMax].vector, absorber)
        columns = torch.stack([site.weight().double().abs().amax(0) for site in absorber.readers]).amax(0)
        weights = _largest(columns, absorber)
        s = inputs.pow(self.alpha) / weights.pow(1 - self.alpha)
        # An input that was never active, or that nothing looks at, has nothing to move.
        return torch.where((inputs > 0) & (weights > 0), s, 1)


def _largest(values: Float[Tensor, " in"], absorber: Absorber) -> Float[Tensor, " scales"]:
    """Of the columns that share a scale."""
    return values.new_zeros(absorber.count).scatter_reduce_(0, absorber.columns, values, "amax")


@dataclass(frozen=True, kw_only=True)
class AwqScale(Rescale):
    """Scale columns of active inputs for the rounding that follows.

    bits:       of the rounding that follows.
    group_size: columns of a row that share a scale there, or `channel`, `tensor`.
    symmetric:  no zero points are stored there.
    gradients:  judge by the Fisher information of the outputs too.
    """

    name = "awq-scale"
    family = "quantization"

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
        return self._method.required_statistics

    @property
    def _method(self) -> Awq:
        return Awq(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, gradients=self.gradients)

    def scales(self, absorber: Absorber, stats: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        columns = absorber.columns
        width = len(columns)
        spacing = GridSpec(self.bits, self._method.group_columns(width), self.symmetric)
        activity = stats[0][AbsMean].vector
        # Columns that share a scale are as active as they are on average.
        sums = activity.new_zeros(absorber.count).index_add_(0, columns, activity)
        shared = (sums / columns.bincount(minlength=absorber.count))[columns]
        readers = [self._scaled(site, what) for site, what in zip(absorber.readers, stats, strict=True)]
        s = search_scales(readers, shared, spacing, weighted=False)
        return s.new_ones(absorber.count).index_copy_(0, columns, s)

    def _scaled(self, site: Site, stats: LayerStats) -> ScaledMatrix:
        weight = site.weight()
        alike = torch.ones(len(weight), device=weight.device)
        return ScaledMatrix(
            weight, stats[GradCovariance].matrix if self.gradients else alike, stats[InputCovariance].matrix
        )
