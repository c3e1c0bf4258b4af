"""What both steps do: measure, choose the scales of every place that can take them up, and put them in.

The model computes what it did before, but for rounding; what changes is how well its matrices, or what they read, can
be put into few bits by a later step.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Calibration, LayerStats, Statistic, collect_stats
from laconic.compress.step import Outcome, Step
from laconic.errors import UserError
from laconic.model import LanguageModel
from laconic.model.scale_folding import Absorber, find_absorbers, fold_scales


@dataclass(frozen=True, kw_only=True)
class Rescale(Step):
    """Multiply columns of projections, and divide what makes their inputs."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[type[Statistic]]:
        """The statistics that choosing asks for."""

    @abstractmethod
    def scales(self, absorber: Absorber, known: Sequence[LayerStats]) -> Float[Tensor, " scales"]:
        """The scales, all above zero; `known` is of each of its readers."""

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
        known = collect_stats(lm, data, self.needs, sites)
        for absorber in data.track(absorbers, "Scaling the inputs"):
            fold_scales(lm, absorber, self.scales(absorber, [known[site.name] for site in absorber.readers]))
        return Outcome(plan={}, before=nbytes, after=dict(nbytes))
