"""Brings a compressed model nearer to the original without training: biases, factors, kept weights, scales, tables."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from laconic.calibrate import Calibration
from laconic.calibrate.held_out import rows_held_out, taken_apart
from laconic.calibrate.passes import evaluating
from laconic.compress import Outcome, Step
from laconic.compress.kl_metric import Divergences, KLMetric
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel
from laconic.recover.correct.correction import correct
from laconic.recover.correct.pairs import rows_of_blocks


@dataclass(frozen=True, kw_only=True)
class Correct(Step):
    """Make up for the errors of the steps before, layer by layer, as far as the numbers that are stored can.

    refit:    numbers beside zeros, codes and ranks move by least squares; otherwise, or where that does not help,
              biases alone.
    held_out: fraction of the calibration rows that decides whether anything changes.
    """

    name = "correct"

    refit: bool = True
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise must_be("held_out", "in (0, 1)", self.held_out)

    @property
    def needs_original(self) -> bool:
        return True

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        """What it cannot correct it leaves as it is."""

    def check_data(self, data: Calibration | None) -> None:
        rows_held_out(self._known(data).batches, self.held_out, self.name)

    def _known(self, data: Calibration | None) -> Calibration:
        if data is None:
            raise UserError("The step 'correct' needs calibration data; name a source of it.")
        return data

    def dry_run(self, lm: LanguageModel) -> None:
        """The structure stays."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Correct a copy of the model, and keep that where it diverges less from the original on held-out rows.

        Raises:
            UserError: data or the original is missing, there are too few rows, or the blocks are not those of the
                original.
        """
        data = self._known(data)
        original = lm.original
        if original is None:
            raise UserError(
                "The step 'correct' needs the original to compare with; run it in one recipe with the steps before it."
            )
        rows_of_blocks(lm, original)
        fitting, judging = taken_apart(data.batches, self.held_out, data.seed, self.name)
        data = replace(data, batches=fitting)
        with evaluating(lm, original):
            judge = KLMetric(original, judging)
            before = judge.each(lm)
            kept, after = self._improved(lm, original, data, judge, before) if before.mean else ("nothing", before)
        found = {"kl_before": before.mean, "kl_after": after.mean, "kept": kept}
        return Outcome(plan={}, before={}, after={}, found=found)

    def _improved(
        self, lm: LanguageModel, original: LanguageModel, data: Calibration, judge: KLMetric, before: Divergences
    ) -> tuple[str, Divergences]:
        """What was kept of the ways to correct, the one that moves most first, and the divergence then."""
        for way, refits in (("refit", True), ("biases", False)):
            if refits and not self.refit:
                continue
            candidate = lm.copy()
            correct(candidate, original, data, refits)
            after = judge.each(candidate)
            if after.beats(before):
                _take_over(lm, candidate)
                return way, after
        return "nothing", before


@torch.no_grad()
def _take_over(lm: LanguageModel, other: LanguageModel) -> None:
    """The numbers of `other`, a copy of `lm`, in place."""
    for mine, theirs in zip(lm.model.parameters(), other.model.parameters(), strict=True):
        mine.copy_(theirs)
