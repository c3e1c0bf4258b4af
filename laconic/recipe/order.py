"""Whether every step can follow those before it, found out on a model without weights, before any work is done.

Each step is checked on the structure that the ones before leave (`Step.rehearse`), so that what it says is what it
would say when it is reached, hours later.
"""

from collections.abc import Sequence
from dataclasses import replace

from laconic.compress import Step
from laconic.errors import UserError, placed
from laconic.model import LanguageModel
from laconic.store.structure import describe


def check_order(lm: LanguageModel, steps: Sequence[Step], places: Sequence[str]) -> LanguageModel:
    """What becomes of the structure of `lm`, which has no weights and is left as it is; `places` are what the user
    calls the steps.

    Raises:
        UserError: a step cannot be done, or not after an earlier one, which is then named, or leaves a model that no
            configuration describes.
    """
    here = lm.shallow_copy()
    for number, step in enumerate(steps):
        here = with_original(here, steps[number:])
        error = _mistake(step, here)
        if error is not None:
            spoiler = _spoiler(lm, step, steps[:number])
            place = places[number] if spoiler is None else f"{places[number]} cannot follow {places[spoiler]}"
            raise placed(error, place) from error
        here = step.dry_run(here) or here
        error = _why_no_folder_holds(here)
        if error is not None:
            raise placed(error, places[number]) from error
    return here


def with_original(lm: LanguageModel, steps: Sequence[Step]) -> LanguageModel:
    """`lm` as it goes into the first of `steps`: with itself as the original, where that is what they compare with."""
    return replace(lm, original=lm.shallow_copy()) if needs_original(lm, steps) else lm


def needs_original(lm: LanguageModel, steps: Sequence[Step]) -> bool:
    """Whether `lm` has to be kept as it is, before the first of `steps`, for them to compare with."""
    return lm.original is None and not steps[0].prepares and any(step.needs_original for step in steps)


def _spoiler(lm: LanguageModel, step: Step, before: Sequence[Step]) -> int | None:
    """The last of those `before` that `step` could still have been done in front of; None where it never could."""
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
