"""Steps that multiply columns of projections by scales, and divide the outputs of the preceding module by them.

The outputs of the model stay the same, except for rounding. A later step then quantizes the matrices, or their inputs,
with smaller errors.

SmoothQuant: G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
ICML 2023, arXiv 2211.10438. AWQ: J. Lin et al., MLSys 2024, arXiv 2306.00978.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
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
from laconic.calibrate.blockwise import blockwise_calibrate
from laconic.compress.progress_log import find_finished_parts
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError
from laconic.methods import Awq
from laconic.model import LanguageModel, Site
from laconic.model.scale_folding import Absorber, find_absorbers, fold_scales
from laconic.numerics.grid import GridSpec
from laconic.numerics.scaling import ScaledMatrix, search_scales


@dataclass(frozen=True, kw_only=True)
class Rescale(Step):
    """Multiply columns of projections by scales, and divide their inputs by the same scales."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[type[Statistic]]:
        """The types of statistics that the choice of scales needs."""

    @abstractmethod
    def scales(self, absorber: Absorber, stats: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        """The scales of one absorber, all above zero.

        Args:
            absorber: the module whose outputs are divided by the scales, with the projections that read them.
            stats: statistics of each of these projections.
        """

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        if not find_absorbers(lm):
            raise UserError(
                f"The step '{self.name}' cannot be applied to this '{lm.model.config.model_type}': it has no norm, "
                "value projection or gate whose outputs only dense projections read; put the step before those that "
                "compress, or leave it out."
            )

    def dry_run(self, lm: LanguageModel) -> None:
        """Scales change no structure."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Scale the inputs of all projections whose preceding module can absorb the scales.

        Args:
            lm: the model, changed in place.
            data: calibration data.

        Returns:
            The unchanged bytes of the layers whose columns were multiplied.

        Raises:
            UserError: data is missing or empty, or no module of `lm` can absorb scales.
        """
        if data is None:
            raise UserError(f"The step '{self.name}' needs calibration data; name a source of it.")
        self.check(lm)
        absorbers = find_absorbers(lm)
        sites = [site for absorber in absorbers for site in absorber.readers]
        nbytes = lm.stored_nbytes(sites)
        # Scales of one absorber do not change the inputs of other projections, so all statistics are collected once.
        if lm.loans is None:
            stats = collect_stats(lm, data, self.needs, sites)
            for absorber in data.track(absorbers, "Scaling the inputs"):
                self._fold(lm, absorber, stats)
        else:
            self._apply_streamed(lm, data, absorbers)
        return Outcome(plan={}, before=nbytes, after=dict(nbytes))

    def _fold(self, lm: LanguageModel, absorber: Absorber, stats: Mapping[str, LayerStats]) -> None:
        fold_scales(lm, absorber, self.scales(absorber, [stats[site.name] for site in absorber.readers]))

    def _apply_streamed(self, lm: LanguageModel, data: Calibration, absorbers: Sequence[Absorber]) -> None:
        """Measure and scale one block of a streamed model after another."""
        assert lm.loans is not None
        expected: dict[str | None, set[str]] = {}
        for absorber in absorbers:
            expected.setdefault(absorber.block, set()).add(absorber.name)
        find_finished_parts(lm, expected)
        sites = [site for absorber in absorbers for site in absorber.readers]
        for problems in blockwise_calibrate(lm, data, self.needs, sites):
            stats = {site.name: problem.stats for site, problem in problems}
            for absorber in (absorber for absorber in absorbers if absorber.readers[0].name in stats):
                self._fold(lm, absorber, stats)
                lm.loans.record(absorber.block, {absorber.name: absorber.count})
            # Their memory is needed for the next block.
            del problems, stats

    def stream_obstacle(self, lm: LanguageModel) -> str | None:
        return None


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Rescale):
    """Move large values from inputs to weights, so that both are easier to round to 8 bits.

    The scale of column j is s_j = max |x_j|^α / max |w_j|^{1−α}, over all matrices that read x. Inputs are divided by
    s_j and columns multiplied.

    Args:
        alpha: α in [0, 1]; 1 moves everything to the weights, 0 everything to the inputs.

    Reference:
        Xiao et al., ICML 2023, equation (4).

    Example:
        >>> SmoothQuant(alpha=0.8).needs_data
        True
    """

    name = "smoothquant"
    family = "quantization"

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def needs(self) -> frozenset[type[Statistic]]:
        return frozenset({AbsMax})

    def scales(self, absorber: Absorber, stats: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        inputs = _largest(stats[0][AbsMax].vector, absorber)
        columns = torch.stack([site.weight().double().abs().amax(0) for site in absorber.readers]).amax(0)
        weights = _largest(columns, absorber)
        s = inputs.pow(self.alpha) / weights.pow(1 - self.alpha)
        # Inputs that are always zero, and columns of zeros, keep the scale 1.
        return torch.where((inputs > 0) & (weights > 0), s, 1)


def _largest(values: Float[Tensor, " in"], absorber: Absorber) -> Float[Tensor, " scales"]:
    """The largest value among the columns that share a scale."""
    return values.new_zeros(absorber.count).scatter_reduce_(0, absorber.columns, values, "amax")


@dataclass(frozen=True, kw_only=True)
class AwqScale(Rescale):
    """Scale up the columns of active inputs before a later step rounds the matrices.

    Unlike the method `awq`, all matrices that read one input get the same scales, and nothing is added when the model
    runs. A matrix is not changed if no preceding module can absorb its scales.

    Args:
        bits: bits of the later quantization, 2 to 8.
        group_size: columns of a row that share a scale in that quantization, or `channel`, `tensor`.
        symmetric: the later quantization stores no zero points.
        gradients: weight the error by the Fisher information of the outputs too.

    Reference:
        Lin et al., MLSys 2024, equations (4) and (5); the search is in `laconic.numerics.scaling`.

    Example:
        >>> AwqScale(bits=3).needs_data
        True
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
        # Columns that share a scale get their mean activity.
        sums = activity.new_zeros(absorber.count).index_add_(0, columns, activity)
        shared = (sums / columns.bincount(minlength=absorber.count))[columns]
        readers = list(map(self._scaled_matrix, absorber.readers, stats))
        s = search_scales(readers, shared, spacing, weighted=False)
        return s.new_ones(absorber.count).index_copy_(0, columns, s)

    def _scaled_matrix(self, site: Site, stats: LayerStats) -> ScaledMatrix:
        weight = site.weight()
        gradients = stats[GradCovariance].matrix if self.gradients else torch.ones(len(weight), device=weight.device)
        return ScaledMatrix(weight, gradients, stats[InputCovariance].matrix)
