"""A step that clips large weights, for example before a quantization."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from laconic import UserError
from laconic.calibrate import Calibration
from laconic.compress import Outcome, Step
from laconic.formats import Format
from laconic.model import DEFAULT_TARGETS, LanguageModel


@dataclass(frozen=True, kw_only=True)
class ClipWeights(Step):
    """Clip the weights of each matrix to a number of its standard deviations.

    Args:
        deviations: the largest weight, in standard deviations.
        targets: which matrices, as `--targets` takes them.
    """

    name = "clip-weights"

    deviations: Annotated[float, Field(gt=0)] = 4.0
    targets: tuple[str, ...] = DEFAULT_TARGETS

    @property
    def needs_data(self) -> bool:
        return False

    def check(self, lm: LanguageModel) -> None:
        for site in lm.sites(self.targets):
            if isinstance(site.module, Format):
                raise UserError(f"'{site.name}' is compressed already; put clip-weights before that step.")

    def dry_run(self, lm: LanguageModel) -> None:
        """The structure stays the same."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        self.check(lm)
        sites = lm.sites(self.targets)
        nbytes = lm.stored_nbytes(sites)
        for site in sites:
            limit = self.deviations * float(site.parameter.detach().std())
            site.parameter.data.clamp_(-limit, limit)
        return Outcome(plan={}, before=nbytes, after=nbytes)
