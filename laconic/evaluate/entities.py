"""Precision, recall and F1 of named entities, as the package seqeval finds them in tags such as B-PER and I-PER.

An entity is right if its type, its first and its last word are right (Tjong Kim Sang and De Meulder 2003,
https://aclanthology.org/W03-0419). The counts of each sentence are kept, so that a resample of sentences has an F1.
"""

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np

from laconic.errors import UserError, install
from laconic.evaluate.metrics import Metric, Scores, SubsetMetric

RIGHT, WORDS, ALL = 0, 1, 2
"""Columns of a table: right words, words, and the first of the three counts of all entities.

Three counts are the entities that are both true and predicted, those that are predicted, and those that are true. The
counts of each type follow in the order of the types.
"""
COUNTS = 3

_TAG = re.compile(r"[BIES]-(.+)")


def entity_types(names: Sequence[str]) -> tuple[str, ...]:
    """The types of entities in the tags of a model, sorted; empty if some tag is neither `O` nor like `B-PER`.

    Args:
        names: the names of the classes.

    Example:
        >>> entity_types(["O", "B-PER", "I-PER", "B-LOC"]), entity_types(["NOUN", "VERB"])
        (('LOC', 'PER'), ())
    """
    tags = [_TAG.fullmatch(name) for name in names if name != "O"]
    return tuple(sorted({tag[1] for tag in tags if tag is not None})) if all(tags) else ()


def check_seqeval(task: str) -> None:
    """Raise UserError if the package seqeval is not installed; `task` is the task that needs it."""
    if find_spec("seqeval") is None:
        raise UserError(f"The task '{task}' needs seqeval, not installed here: {install('entities')}.")


def count_entities(true: Sequence[str], predicted: Sequence[str], types: Sequence[str]) -> list[int]:
    """Count the entities in the tags of one sentence.

    Args:
        true: the true tag of each word.
        predicted: the predicted tags.
        types: the types of entities.

    Returns:
        The counts as in the columns of a table from `ALL` on.

    Example:
        >>> count_entities(["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "B-LOC"], ["LOC", "PER"])
        [1, 2, 1, 0, 1, 0, 1, 1, 1]
    """
    from seqeval.metrics.sequence_labeling import get_entities  # noqa: PLC0415 (an extra)

    found, wanted = set(get_entities(list(predicted))), set(get_entities(list(true)))
    sets = (found & wanted, found, wanted)
    by_type = [sum(entity[0] == kind for entity in part) for kind in types for part in sets]
    return [*map(len, sets), *by_type]


def entity_metrics(types: Sequence[str]) -> dict[str, Metric]:
    """The metrics of a table of counts.

    Args:
        types: the types of entities; without types, the only metric is the accuracy of words.

    Returns:
        F1, precision and recall of all entities, the accuracy of words, and the F1 of each type as `f1/TYPE`.

    Example:
        >>> metrics = entity_metrics(["PER"])
        >>> table = np.array([[8, 9, 1, 2, 1, 1, 2, 1], [5, 5, 1, 1, 2, 1, 1, 2]])
        >>> {name: round(metric(table), 2) for name, metric in metrics.items()}
        {'f1': 0.67, 'precision': 0.67, 'recall': 0.67, 'accuracy': 0.93}
    """
    accuracy = SubsetMetric(lambda table: _share(table[:, RIGHT], table[:, WORDS]), lambda table: table[:, WORDS] > 0)
    if not types:
        return {"accuracy": accuracy}
    several = types if len(types) > 1 else ()
    return {
        "f1": _over_entities(ALL, _f1),
        "precision": _over_entities(ALL, lambda both, found, wanted: _share(both, found)),
        "recall": _over_entities(ALL, lambda both, found, wanted: _share(both, wanted)),
        "accuracy": accuracy,
        **{f"f1/{kind}": _over_entities(ALL + COUNTS * number, _f1) for number, kind in enumerate(several, start=1)},
    }


def _over_entities(column: int, metric: Callable[[Scores, Scores, Scores], float]) -> Metric:
    """A metric of the three counts from `column` on; sentences without entities do not change it."""
    counts = slice(column, column + COUNTS)
    return SubsetMetric(lambda table: metric(*table[:, counts].T), lambda table: table[:, counts].sum(axis=1) > 0)


def _f1(both: Scores, found: Scores, wanted: Scores) -> float:
    return _share(2 * both, found + wanted)


def _share(part: Scores, whole: Scores) -> float:
    """The ratio of two sums, 0 for an empty whole, as in seqeval."""
    return float(np.sum(part) / max(np.sum(whole), 1))
