"""The numbers of classes: those in which a corpus is labelled, and the model's own."""

from collections.abc import Sequence

from laconic.model import LanguageModel


def class_names(lm: LanguageModel) -> list[str]:
    """What the model's configuration calls its classes, in their order."""
    return [str(label).lower() for _, label in sorted((lm.model.config.id2label or {}).items())]


def class_numbers(lm: LanguageModel, classes: Sequence[str]) -> list[int]:
    """The number in `classes` of each of the model's classes, in the model's order.

    They differ where the model names the same classes in another order; a model that names them otherwise, as LABEL_0,
    is taken to use the numbers of the corpus.
    """
    names = class_names(lm)
    if len(names) == len(classes) and set(names) == set(classes):
        return [classes.index(name) for name in names]
    return list(range(lm.model.config.num_labels or 0))
