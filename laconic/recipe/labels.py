"""Check before weights are loaded that the data have the labels which a recipe needs, and that its models know them.

Labels are needed for `labels: data`, and for steps that train on a task.
"""

from collections.abc import Callable, Sequence

from laconic.calibrate.classes import called, class_names
from laconic.calibrate.corpus import Corpus, sample
from laconic.calibrate.labels import labels_of
from laconic.compress import Step
from laconic.errors import UserError, add_place
from laconic.model import LanguageModel
from laconic.recipe.order import with_original
from laconic.recipe.sampling import FROM_DATA, Sampling


def check_labels(
    lm: LanguageModel, steps: Sequence[Step], places: Sequence[str], sampling: Sampling, read: Callable[[], Corpus]
) -> None:
    """Check the labels that each step needs.

    Args:
        lm: the model without weights.
        steps: the steps; `check_order` has checked their order.
        places: the name of each step in error messages.
        sampling: how calibration data are drawn.
        read: reads the calibration data.

    Raises:
        UserError: a label is missing or is no class of the model, the classes of data and model have different names,
            or `label_order` has the wrong number of classes.
    """
    models = [here := lm.shallow_copy()]
    for number, (step, place) in enumerate(zip(steps, places, strict=True)):
        here = with_original(here, steps[number:])
        if step.needs_labels:
            try:
                step.check_labels(here, read(), sampling.seed)
            except UserError as error:
                raise add_place(error, place) from error
        now = step.dry_run(here)
        here = now or here
        models += [] if now is None else [now]
    if sampling.labels == FROM_DATA and any(step.needs_data for step in steps):
        for model in models:
            if model.task.is_sequence_classification:
                labels_of(model, sample(read(), sampling.samples, sampling.seed))
    check_label_order(*models)


def check_label_order(*models: LanguageModel) -> None:
    """Check that `label_order`, if it was given, has the right number of classes for one of the models.

    Args:
        models: the model before the first step, then each model that replaced the one before.

    Raises:
        UserError: none of them is a classifier, or none has this number of classes.
    """
    first = models[0]
    if first.label_order is None:
        return
    heads = [model for model in models if model.task.is_sequence_classification]
    if not heads:
        raise UserError(
            "label_order is for models that tell classes apart; "
            f"{called(first)} is of the kind {first.task.value}: leave it out."
        )
    if all(model.model.config.num_labels != len(first.label_order) for model in heads):
        class_names(heads[0])
