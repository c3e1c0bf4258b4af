"""Brings a compressed model nearer to the original without training: biases, factors, kept weights, scales, tables."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import nn

from laconic.calibrate import Calibration
from laconic.calibrate.passes import evaluating
from laconic.compress import Outcome, Step
from laconic.compress.judge import Judge
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel
from laconic.recover.correct.comparison import Comparison
from laconic.recover.correct.fit import adjust, bias_of, centre, refit
from laconic.recover.correct.pairs import outside, rows_of_blocks
from laconic.recover.correct.rows import taken_apart


@dataclass(frozen=True, kw_only=True)
class Correct(Step):
    """Make up for the errors of compression, layer by layer, as far as the stored numbers can.

    refit:    what the formats store besides zeros, codes and ranks moves by least squares; else biases alone.
    held_out: fraction of the calibration rows that decides whether anything is kept.
    """

    name = "correct"
    looks_at_original = True
    needs_original = True

    refit: bool = True
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise must_be("held_out", "in (0, 1)", self.held_out)

    @property
    def needs_data(self) -> bool:
        return True

    def check(self, lm: LanguageModel) -> None:
        """There is nothing that it could not leave as it is."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Correct copies of the model, and keep what diverges least from the original on rows that were held out.

        Raises:
            UserError: data or the original is missing, or there are too few rows.
        """
        if data is None:
            raise UserError("The step 'correct' needs calibration data; name a source of it.")
        if lm.original is None:
            raise UserError(
                "The step 'correct' needs the original to compare with; run it behind the steps that compress, in one "
                "recipe."
            )
        fitting, judging = taken_apart(data.batches, self.held_out, data.seed)
        data = replace(data, batches=fitting)
        with evaluating(lm, lm.original):
            judge = Judge(lm.original, judging)
            before = best = judge(lm)
            kept, chosen = "nothing", lm
            for name, way in self._ways().items():
                candidate = lm.copy()
                way(candidate, lm.original, data)
                divergence = judge(candidate)
                if divergence < best:
                    kept, best, chosen = name, divergence, candidate
                    break
            if chosen is not lm:
                _take_over(lm, chosen, lm.original)
        return Outcome(plan={}, before={}, after={}, found={"kl_before": before, "kl_after": best, "kept": kept})

    def _ways(self) -> dict[str, Callable[[LanguageModel, LanguageModel, Calibration], None]]:
        return ({"refit": refitted} if self.refit else {}) | {"biases": centred}


def centred(lm: LanguageModel, original: LanguageModel, data: Calibration) -> None:
    """Move the biases of `lm` alone."""
    _correct(lm, original, data, fits=False)


def refitted(lm: LanguageModel, original: LanguageModel, data: Calibration) -> None:
    """Move all that its layers store but zeros, codes and ranks."""
    _correct(lm, original, data, fits=True)


def _correct(lm: LanguageModel, original: LanguageModel, data: Calibration, fits: bool) -> None:
    for pairs, anchor in Comparison(lm, original, data).steps():
        for pair in pairs:
            layer = lm.model.get_submodule(pair.name)
            if isinstance(layer, nn.LayerNorm):
                adjust(lm, layer, *anchor.moments(pair.name, centred=True), gains=fits)
                continue
            centred = bias_of(layer) is not None
            whole, folds = anchor.moments(pair.name, centred)
            if fits and not is_shared(lm, layer):
                refit(lm, layer, whole, folds)
            if centred:
                centre(lm, layer, whole)


def is_shared(lm: LanguageModel, layer) -> bool:
    """Whether a tensor of the matrix is that of another place too, as a tied head's is that of the embedding."""
    own = {id(parameter) for name, parameter in layer.named_parameters() if not name.endswith("bias")}
    inside = set(layer.modules())
    return any(
        id(parameter) in own
        for module in lm.model.modules()
        if module not in inside
        for parameter in module.parameters(recurse=False)
    )


def _take_over(lm: LanguageModel, other: LanguageModel, original: LanguageModel) -> None:
    """The layers of `other`, a corrected copy, in the places of those of `lm`."""
    pieces = [piece for row in rows_of_blocks(lm, original) for piece in row.pieces]
    for piece in [*pieces, outside(lm, original)]:
        norm = [] if piece.norm is None else [piece.norm]
        for pair in [*norm, *(pair for step in piece.steps for pair in step)]:
            for (_, mine), (_, theirs) in zip(
                lm.model.get_submodule(pair.name).named_parameters(),
                other.model.get_submodule(pair.name).named_parameters(),
                strict=True,
            ):
                mine.data.copy_(theirs.data)
