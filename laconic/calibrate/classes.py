"""Match the outputs of a classifier with the classes of a data set, or of another model, by their names.

Case, `-`, `_` and spaces are ignored, and common synonyms are equal (`POS` and `positive`, `not-duplicate` and
`non_duplicate`). `LABEL_1`, `class 1` and `1` name a class by its number. `LanguageModel.label_order`, if it is given,
replaces the names in config.json.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from transformers import PreTrainedConfig

from laconic.errors import UserError
from laconic.model import LanguageModel

SYNONYMS = (
    ("negative", "neg"),
    ("positive", "pos"),
    ("neutral", "neu"),
    ("entailment", "entail", "entails", "entailed"),
    ("contradiction", "contradict", "contradicts", "contradictory", "contradicted"),
    ("acceptable", "accepted", "grammatical"),
    ("equivalent", "paraphrase", "paraphrased", "duplicate"),
    ("true", "yes"),
    ("false", "no"),
)
"""Each tuple lists names of one class, the canonical name first. The class names of the GLUE tasks are included."""
OPPOSITES = {"unacceptable": "acceptable", "ungrammatical": "grammatical"}
NEGATIONS = ("not", "non", "no")
FILLERS = {"a", "an", "the", "is"}
MOST_NAMES = 10
"""Largest number of names that an error message lists."""

_STANDARD = {name: names[0] for names in SYNONYMS for name in names}
_NUMBER = re.compile(r"(?:label|class)[-_\s]?(\d+)|([-+]?\d+)", re.ASCII)


def class_number(name: str) -> int | None:
    """Return the number in a name like `LABEL_1`, `class 1` or `-1`; None for any other name."""
    found = _NUMBER.fullmatch(name.strip().casefold())
    return None if found is None else int(found[1] or found[2])


def canonical_name(name: str) -> str:
    """Return a canonical name, the same for every spelling and synonym of a class."""
    number = class_number(name)
    if number is not None:
        return str(number)
    words = [word for word in re.split(r"[-_\s]+", name.casefold()) if word]
    words = [word for word in words if word not in FILLERS] or words
    negated = len(words) > 1 and words[0] in NEGATIONS
    joined = "".join(words[1:] if negated else words)
    for negation in NEGATIONS:
        if not negated and joined.removeprefix(negation) in _STANDARD and joined.startswith(negation):
            negated, joined = True, joined.removeprefix(negation)
    if joined in OPPOSITES:
        negated, joined = not negated, OPPOSITES[joined]
    return ("not " if negated else "") + _STANDARD.get(joined, joined)


def find_class(name: str, names: Sequence[str]) -> int | None:
    """Return the index in `names` of the class that `name` means; None if there is no match or more than one."""
    for key in (_spelling, canonical_name):
        places = [place for place, other in enumerate(names) if key(other) == key(name)]
        if len(places) == 1:
            return places[0]
    return None


def match_classes(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Map the classes of one side to those of the other.

    Classes are matched by name. If no name matches and one side names its classes by number, they are matched by
    number.

    Args:
        names: all classes of one side, in their order.
        among: all classes of the other side, in their order.

    Returns:
        For each of `names` its index in `among`; None if the class is missing there, or if several of `names` match
        the same class.
    """
    found = [find_class(name, among) for name in names]
    if all(place is None for place in found):
        found = _by_number(names, among)
    return [None if place is not None and found.count(place) > 1 else place for place in found]


def _by_number(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    ours, theirs = class_numbers(names), class_numbers(among)
    if theirs is not None and ours is None:
        return [theirs.index(number) if number in theirs else None for number in range(len(names))]
    if ours is not None and theirs is None:
        return [number if number < len(among) else None for number in ours]
    return [None] * len(names)


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """Return the numbers of names like `LABEL_0`, `LABEL_1`; None unless they are a permutation of 0, …, n − 1."""
    numbers = [number for name in names if (number := class_number(name)) is not None]
    return numbers if sorted(numbers) == list(range(len(names))) else None


def _spelling(name: str) -> str:
    return re.sub(r"[-_\s]+", "", name.casefold())


def class_names(lm: LanguageModel) -> tuple[str, ...]:
    """Return the names of the model's outputs, in their order: `label_order` if given, else those in config.json.

    Raises:
        UserError: `label_order` does not name each output once, or id2label and label2id contradict each other.
    """
    if lm.label_order is None:
        _check_consistent(lm)
        return config_class_names(lm.model.config)
    count, order = lm.model.config.num_labels, lm.label_order
    if len(order) != count or len({_spelling(name) for name in order}) != count:
        raise UserError(
            f"label_order must name each of the {count} outputs of {quote_model(lm)} once, in their order; "
            f"got {join_names(order)}."
        )
    return order


def config_class_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names in id2label; an output without a name is called `LABEL_i`, as in transformers."""
    names = cast(Mapping[int, str], config.id2label or {})
    return tuple(str(names.get(number, f"LABEL_{number}")) for number in range(config.num_labels or 0))


def _check_consistent(lm: LanguageModel) -> None:
    names, numbers = config_class_names(lm.model.config), lm.model.config.label2id or {}
    # transformers keeps the default label2id (LABEL_0, LABEL_1) if only id2label is changed; that is no contradiction.
    wrong = [name for name in names if set(numbers) == set(names) and str(numbers[name]) != str(names.index(name))]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"The config.json of {quote_model(lm)} contradicts itself: by id2label '{name}' is output "
            f"{names.index(name)}, and by label2id {numbers[name]}; fix it, or give the names in the order of the "
            "outputs as label_order."
        )


def share_label_order(lm: LanguageModel, other: LanguageModel) -> LanguageModel:
    """Return `lm` with the `label_order` of `other`, if it has none itself and both have the same names in id2label."""
    if lm.label_order is not None or config_class_names(lm.model.config) != config_class_names(other.model.config):
        return lm
    return replace(lm, label_order=other.label_order)


def match_outputs(lm: LanguageModel, other: LanguageModel, classes: Sequence[str] = ()) -> list[int] | None:
    """Match the outputs of two classifiers.

    Classes are matched by name. If no name of `lm` is known to `other`, both are matched with the `classes` of the
    data, and if that fails, by number.

    Args:
        lm: a model.
        other: the model to compare with.
        classes: class names of the data, in the order of their numbers; empty if unknown.

    Returns:
        For each output of `lm` the index of the same class in `other`; None if the order is the same already, or if
        the models are not classifiers of one task.

    Raises:
        UserError: the numbers of outputs differ, or the classes do not match.
    """
    if not lm.task.has_class_names or other.task is not lm.task:
        return None
    counts = [model.model.config.num_labels for model in (lm, other)]
    if counts[0] != counts[1]:
        raise UserError(
            f"{quote_model(lm)} has {counts[0]} outputs and {quote_model(other)} {counts[1]}, so that they cannot be "
            "compared; take models of the same classes."
        )
    if counts[0] == 1:
        return None
    ours, theirs = (class_names(share_label_order(*pair)) for pair in ((lm, other), (other, lm)))
    places = _match_through_data(ours, theirs, classes)
    if None in places:
        # label_order has the class names of the data, which the other model need not use; compare those in config.json.
        places = [
            find_class(name, config_class_names(other.model.config)) for name in config_class_names(lm.model.config)
        ]
    found = [place for place in places if place is not None]
    if len(set(found)) < len(ours):
        raise class_mismatch(lm, theirs, quote_model(other))
    return None if found == list(range(len(found))) else found


def _match_through_data(ours: Sequence[str], theirs: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    if all(find_class(name, theirs) is None for name in ours):
        our_numbers, their_numbers = match_classes(ours, classes), match_classes(theirs, classes)
        if None not in our_numbers and None not in their_numbers:
            return [their_numbers.index(number) if number in their_numbers else None for number in our_numbers]
    return match_classes(ours, theirs)


def class_mismatch(lm: LanguageModel, classes: Sequence[str], whose: str) -> UserError:
    """Return the error for classes that do not match by name.

    Args:
        lm: the model.
        classes: the class names of the data set or other model.
        whose: how the message calls that data set or model.
    """
    ours = class_names(lm)
    owner = (
        "label_order" if lm.label_order is not None else f"The model {quote_model(lm)}" if lm.source else "The model"
    )
    return UserError(
        f"{owner} has the classes {join_names(ours)}, and {whose} has {join_names(classes)}, which do not match by "
        "name; give label_order (--label-order on the command line): the latter names in the order of the model's "
        "outputs."
    )


def quote_model(lm: LanguageModel) -> str:
    """Return the name of the model for an error message."""
    return f"'{lm.source}'" if lm.source else "the model"


def join_names(names: Sequence[str]) -> str:
    """Join the names for an error message; after the first ten, only the number of the others is given."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
