"""Check a recipe on a model without weights, before any work is done.

Each step is checked on the structure that the steps before it produce (`Step.dry_run`). An error is then reported at
once, and not after hours, when the run reaches the step. Labels are needed for `labels: data`, and for steps that train
on a task.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

from laconic.calibrate import sources
from laconic.calibrate.batching import check_readable
from laconic.calibrate.classes import class_names, match_outputs, quote_model
from laconic.calibrate.corpus import Corpus, sample
from laconic.calibrate.labels import convert_labels
from laconic.calibrate.row import tokenizer_of
from laconic.compress import Step
from laconic.errors import UserError, add_place
from laconic.evaluate import calibration_sources, check_tasks
from laconic.evaluate.tasks import load_corpus
from laconic.model import LanguageModel, with_tokenizers
from laconic.model.tokens import check_decoder_start
from laconic.recipe.sampling import FROM_DATA, Sampling
from laconic.recipe.schema import IN_MEMORY, Recipe
from laconic.store.structure import describe


def check_recipe(
    recipe: Recipe,
    model: LanguageModel,
    *,
    compared: bool = False,
    places: Sequence[str] | None = None,
    read: Callable[..., Corpus] = sources.read,
    rows: Callable[..., Corpus] = load_corpus,
) -> list[LanguageModel]:
    """Check all parts of a recipe without reading weights.

    Args:
        recipe: the recipe.
        model: the model of the recipe, without weights.
        compared: whether the outputs of the result will be compared with those of the original.
        places: the names of the steps in error messages; None for `recipe.steps[0].compress` and so on.
        read: reads the calibration data.
        rows: reads the rows of tasks.

    Returns:
        The structure of the model before each step and after the last one, without weights.

    Raises:
        UserError: a part of the recipe is impossible for this model; the message begins with its place.
    """
    model = with_tokenizers(model.with_label_order(recipe.label_order))
    if places is None:
        places = [f"recipe.steps[{index}].{step.name}" for index, step in enumerate(recipe.steps)]
    structures = check_order(model, recipe.steps, places)
    compressed = structures[-1]
    for index, step in enumerate(recipe.steps):
        if step.needs_data and recipe.data is None:
            raise UserError(
                f"recipe.data is missing, and recipe.steps[{index}].{step.name} needs calibration texts; "
                "name their source, for example builtin:pydoc."
            )
    if recipe.data is not None:
        if recipe.data != IN_MEMORY:
            sources.check_source(recipe.data, "train")
        check_decoder_start(model)
        check_readable(model, read(recipe.data, "train"), recipe.sampling.max_length)
    check_labels(structures, recipe.steps, places, recipe.sampling, lambda: read(recipe.data, "train"))
    if compared:
        match_outputs(compressed, model)
    if recipe.evaluate is not None:
        if not recipe.evaluate.tasks and not recipe.evaluate.cost:
            raise UserError(
                "recipe.evaluate has neither tasks nor cost; give it tasks, like [perplexity:builtin:pydoc], or cost: "
                "true, or leave it out."
            )
        own_source = () if recipe.data is None else (recipe.data,)
        if recipe.evaluate.tasks:
            tokenizer_of(compressed)
        check_tasks(
            recipe.evaluate.tasks,
            compressed,
            compared=compared,
            calibration=(*own_source, *calibration_sources(recipe.model)),
            load=partial(rows, limit=recipe.evaluate.limit),
        )
    return structures


def check_order(lm: LanguageModel, steps: Sequence[Step], places: Sequence[str]) -> list[LanguageModel]:
    """Check that all steps can be applied in this order.

    Args:
        lm: the model without weights; it is not changed.
        steps: the steps, in order.
        places: the name of each step in error messages.

    Returns:
        The structure of the model before each step and after the last one, without weights.

    Raises:
        UserError: a step cannot be applied, or an earlier step prevents it (the message names that step), or a step
            produces a model that no configuration describes.
    """
    structures = [lm]
    for number, step in enumerate(steps):
        if needs_original(structures[-1], steps[number:]):
            structures[-1] = replace(structures[-1], original=structures[-1].shallow_copy())
        changed = structures[-1].shallow_copy()
        try:
            changed = step.check_and_dry_run(changed) or changed
        except UserError as error:
            culprit = _preventing_step(lm, step, steps[:number])
            if culprit is None:
                raise _add_step_place(error, step, places[number]) from error
            _, sentence = _split_parameter(error, step)
            raise add_place(UserError(sentence), f"{places[number]} cannot follow {places[culprit]}") from error
        try:
            describe(changed.model)
        except UserError as error:
            raise add_place(error, places[number]) from error
        structures.append(changed)
    return structures


def _add_step_place(error: UserError, step: Step, place: str) -> UserError:
    """The error at the place of its step, or at that of a parameter if its message begins with it, as `targets: `."""
    parameter, sentence = _split_parameter(error, step)
    return add_place(error, place) if parameter is None else UserError(f"{place}.{parameter}: {sentence}")


def _split_parameter(error: UserError, step: Step) -> tuple[str | None, str]:
    """The parameter of a step that a message begins with, as `targets: `, or None; and the rest of the message."""
    parameter, colon, sentence = str(error).partition(": ")
    is_parameter = bool(colon) and parameter in {field.name for field in fields(step)}
    return (parameter, sentence) if is_parameter else (None, str(error))


def needs_original(lm: LanguageModel, steps: Sequence[Step]) -> bool:
    """Whether a copy of `lm` must be kept before the first of `steps`, because one of them compares with it."""
    return lm.original is None and not steps[0].prepares and any(step.needs_original for step in steps)


def _preventing_step(lm: LanguageModel, step: Step, before: Sequence[Step]) -> int | None:
    """The index in `before` of the step that makes `step` impossible; None if it is impossible at every place."""
    lm, last_possible = lm.shallow_copy(), None
    for number, earlier in enumerate(before):
        try:
            step.check(lm)
            last_possible = number
        except UserError:
            pass
        lm = earlier.dry_run(lm) or lm
    return last_possible


def check_labels(
    structures: Sequence[LanguageModel],
    steps: Sequence[Step],
    places: Sequence[str],
    sampling: Sampling,
    read: Callable[[], Corpus],
) -> None:
    """Check before weights are loaded that the data have the labels which the steps need.

    Args:
        structures: the model before each step and after the last one, from `check_order`.
        steps: the steps.
        places: the name of each step in error messages.
        sampling: how calibration data are drawn.
        read: reads the calibration data.

    Raises:
        UserError: a label is missing or is no class of the model, the classes of data and model have different names,
            or `label_order` has the wrong number of classes.
    """
    for lm, step, place in zip(structures, steps, places, strict=False):
        if step.needs_labels:
            try:
                step.check_labels(lm, read(), sampling.seed)
            except UserError as error:
                raise add_place(error, place) from error
    if sampling.labels == FROM_DATA and any(step.needs_data for step in steps):
        for lm in structures:
            if lm.task.reads_labels:
                convert_labels(lm, sample(read(), sampling.samples, sampling.seed))
    check_label_order(*structures)


def check_label_order(*models: LanguageModel) -> None:
    """Check that `label_order`, if it was given, has the right number of classes for one of the models.

    Args:
        models: the model before the first step, then the models that steps make of it.

    Raises:
        UserError: none of them is a classifier, or none has this number of classes.
    """
    first = models[0]
    if first.label_order is None:
        return
    heads = [model for model in models if model.task.has_class_names]
    if not heads:
        raise UserError(
            f"label_order applies to models that classify texts or tokens, and {quote_model(first)} is of the kind "
            f"{first.task.value}; leave it out."
        )
    if all(model.model.config.num_labels != len(first.label_order) for model in heads):
        class_names(heads[0])
