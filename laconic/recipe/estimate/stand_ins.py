"""A step that replaces `shorten` in a trial run, and scores the blocks without dropping any.

The model of a trial has one block of each kind, and can lose none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.calibrate import Calibration
from laconic.calibrate.passes import evaluating
from laconic.compress import Outcome, Shorten, Step
from laconic.model import LanguageModel
from laconic.recipe.estimate.stopwatch import BlockTimer


@dataclass(frozen=True)
class MeasureBlocks(Step):
    """Scores the blocks as `shorten` does, and drops none. The timer then counts the blocks that `shorten` would leave.

    Args:
        shorten: the step.
        left: the fraction of all blocks that it leaves.
        timer: the timer of the trial.
    """

    name = Shorten.name
    family = Shorten.family

    shorten: Shorten
    left: float
    timer: BlockTimer

    @property
    def needs_data(self) -> bool:
        return self.shorten.needs_data

    def stream_obstacle(self, lm: LanguageModel) -> str | None:
        return self.shorten.stream_obstacle(lm)

    def check(self, lm: LanguageModel) -> None:
        """The step was checked on the whole model."""

    def dry_run(self, lm: LanguageModel) -> None:
        """The structure of the model stays."""

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        if data is not None:
            with evaluating(lm):
                self.shorten.measure(lm, data)
        self.timer.keep(self.left)
        return Outcome(plan={}, before={}, after={})


def trial_steps(lm: LanguageModel, steps: Sequence[Step], timer: BlockTimer) -> list[Step]:
    """The steps of a trial: `MeasureBlocks` in place of `shorten`, and the others as they are.

    Args:
        lm: the whole model without weights; it is not changed.
        steps: steps that can be streamed, and were checked on the model.
        timer: the timer of the trial.
    """
    whole, found = lm.shallow_copy(), list[Step]()
    for step in steps:
        if isinstance(step, Shorten):
            before = _count_blocks(whole)
            step.dry_run(whole)
            found.append(MeasureBlocks(step, _count_blocks(whole) / before, timer))
        else:
            found.append(step)
    return found


def _count_blocks(lm: LanguageModel) -> int:
    return sum(len(blocks) for _, blocks in lm.stacks())
