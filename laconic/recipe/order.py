"""Check the order of steps on a model without weights, before any work is done.

Each step is checked on the structure that the steps before it produce (`Step.dry_run`). An error is then reported at
once, and not after hours, when the run reaches the step.
"""

from collections.abc import Sequence
from dataclasses import replace

from laconic.compress import Step
from laconic.errors import UserError, add_place
from laconic.model import LanguageModel
from laconic.store.structure import describe


def check_order(lm: LanguageModel, steps: Sequence[Step], places: Sequence[str]) -> LanguageModel:
    """Check that all steps can be applied in this order.

    Args:
        lm: the model without weights; it is not changed.
        steps: the steps, in order.
        places: the name of each step in error messages.

    Returns:
        The structure of the model after the last step, without weights.

    Raises:
        UserError: a step cannot be applied, or an earlier step prevents it (the message names that step), or a step
            produces a model that no configuration describes.
    """
    here = lm.shallow_copy()
    for number, step in enumerate(steps):
        here = with_original(here, steps[number:])
        error = _mistake(step, here)
        if error is not None:
            spoiler = _spoiler(lm, step, steps[:number])
            place = places[number] if spoiler is None else f"{places[number]} cannot follow {places[spoiler]}"
            raise add_place(error, place) from error
        here = step.dry_run(here) or here
        error = _why_no_folder_holds(here)
        if error is not None:
            raise add_place(error, places[number]) from error
    return here


def with_original(lm: LanguageModel, steps: Sequence[Step]) -> LanguageModel:
    """`lm` with a copy of itself as `lm.original`, if one of `steps` compares the model with the original."""
    return replace(lm, original=lm.shallow_copy()) if needs_original(lm, steps) else lm


def needs_original(lm: LanguageModel, steps: Sequence[Step]) -> bool:
    """Whether a copy of `lm` must be kept before the first of `steps`, because one of them compares with it."""
    return lm.original is None and not steps[0].prepares and any(step.needs_original for step in steps)


def _spoiler(lm: LanguageModel, step: Step, before: Sequence[Step]) -> int | None:
    """The index in `before` of the step that makes `step` impossible; None if it is impossible at every place."""
    here, spoiler = lm.shallow_copy(), None
    for number, earlier in enumerate(before):
        if _mistake(step, here) is None:
            spoiler = number
        here = earlier.dry_run(here) or here
    return spoiler


def _why_no_folder_holds(lm: LanguageModel) -> UserError | None:
    try:
        describe(lm.model)
    except UserError as error:
        return error
    return None


def _mistake(step: Step, lm: LanguageModel) -> UserError | None:
    try:
        step.check(lm)
    except UserError as error:
        return error
    return None
