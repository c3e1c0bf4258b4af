"""What classes are called: a model's outputs and the classes of data, or of another model, meet by name here.

Case, `-`, `_` and spaces do not matter, nor do the usual synonyms (`POS` and `positive`, `not-duplicate` and
`non_duplicate`). `LABEL_1`, `class 1` and `1` name a class by its number. `LanguageModel.label_order` is what the user
says instead of the names in config.json.
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
"""Names of one class; the first stands for all. Those of GLUE's tasks are among them."""
OPPOSITES = {"unacceptable": "acceptable", "ungrammatical": "grammatical"}
NEGATIONS = ("not", "non", "no")
FILLERS = {"a", "an", "the", "is"}
FEWEST = 10
"""Names that a sentence shows at most."""

_STANDARD = {name: names[0] for names in SYNONYMS for name in names}
_NUMBER = re.compile(r"(?:label|class)[-_\s]?(\d+)|([-+]?\d+)", re.ASCII)


def number_of(name: str) -> int | None:
    """The number that a name like `LABEL_1`, `class 1` or `-1` stands for; None for any other."""
    found = _NUMBER.fullmatch(name.strip().casefold())
    return None if found is None else int(found[1] or found[2])


def meaning(name: str) -> str:
    """The same for every spelling and synonym of a class."""
    number = number_of(name)
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


def place_of(name: str, names: Sequence[str]) -> int | None:
    """Where the one class among `names` is that `name` means; None where there is none, or several."""
    for key in (_spelling, meaning):
        places = [place for place, other in enumerate(names) if key(other) == key(name)]
        if len(places) == 1:
            return places[0]
    return None


def places_of(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """For each of `names`, all classes of one side in their order, where the same class is `among` those of the other.

    By name where any name is known there; else by number, where one side has numbers for names. None where a class is
    not there. No two classes have one place.
    """
    found = [place_of(name, among) for name in names]
    if all(place is None for place in found):
        found = _by_number(names, among)
    return [None if place is not None and found.count(place) > 1 else place for place in found]


def _by_number(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    ours, theirs = numbers_of(names), numbers_of(among)
    if theirs is not None and ours is None:
        return [theirs.index(number) if number in theirs else None for number in range(len(names))]
    if ours is not None and theirs is None:
        return [number if number < len(among) else None for number in ours]
    return [None] * len(names)


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The numbers that all the names stand for, which count from 0 on; None where they do not."""
    numbers = [number for name in names if (number := number_of(name)) is not None]
    return numbers if sorted(numbers) == list(range(len(names))) else None


def _spelling(name: str) -> str:
    return re.sub(r"[-_\s]+", "", name.casefold())


def class_names(lm: LanguageModel) -> tuple[str, ...]:
    """What the outputs of the model are called, in their order: by `label_order`, or by its configuration.

    Raises:
        UserError: `label_order` is not one name for each output, or the configuration contradicts itself.
    """
    if lm.label_order is None:
        _check_consistent(lm)
        return names_in(lm.model.config)
    count, order = lm.model.config.num_labels, lm.label_order
    if len(order) != count or len({_spelling(name) for name in order}) != count:
        raise UserError(
            f"label_order must name each of the {count} outputs of {called(lm)} once, in their order; "
            f"got {listed(order)}."
        )
    return order


def names_in(config: PreTrainedConfig) -> tuple[str, ...]:
    """The names in the configuration; an output without one is called by its number, as transformers does."""
    names = cast(Mapping[int, str], config.id2label or {})
    return tuple(str(names.get(number, f"LABEL_{number}")) for number in range(config.num_labels or 0))


def _check_consistent(lm: LanguageModel) -> None:
    names, numbers = names_in(lm.model.config), lm.model.config.label2id or {}
    # transformers leaves LABEL_0, LABEL_1 in label2id where only id2label was changed.
    wrong = [name for name in names if set(numbers) == set(names) and str(numbers[name]) != str(names.index(name))]
    for name in wrong:
        raise UserError(
            f"The config.json of {called(lm)} contradicts itself: by id2label '{name}' is output {names.index(name)}, "
            f"and by label2id {numbers[name]}; mend it, or give the names in the order of the outputs as label_order."
        )


def sharing_order(lm: LanguageModel, other: LanguageModel) -> LanguageModel:
    """`lm` with the `label_order` of `other`, where it has none and its configuration has the same names."""
    if lm.label_order is not None or names_in(lm.model.config) != names_in(other.model.config):
        return lm
    return replace(lm, label_order=other.label_order)


def output_places(lm: LanguageModel, other: LanguageModel, classes: Sequence[str] = ()) -> list[int] | None:
    """For each output of `lm`, which of `other` is the same class; None where all lie alike, or the two do not do the
    same.

    By their names where any is known to the other, else by what both are among the `classes` of data, else by number.

    Raises:
        UserError: there are not as many, or the classes do not match.
    """
    if not lm.task.is_sequence_classification or other.task is not lm.task:
        return None
    counts = [model.model.config.num_labels for model in (lm, other)]
    if counts[0] != counts[1]:
        raise UserError(
            f"{called(lm)} has {counts[0]} outputs and {called(other)} {counts[1]}, so that they cannot be compared; "
            "take models of the same classes."
        )
    if counts[0] == 1:
        return None
    ours, theirs = (class_names(sharing_order(*pair)) for pair in ((lm, other), (other, lm)))
    places = _met(ours, theirs, classes)
    if None in places:
        # The order that was given has the names of data, which another model need not share; numbers are no evidence.
        places = [place_of(name, names_in(other.model.config)) for name in names_in(lm.model.config)]
    found = [place for place in places if place is not None]
    if len(set(found)) < len(ours):
        raise mismatch(lm, theirs, called(other))
    return None if found == list(range(len(found))) else found


def _met(ours: Sequence[str], theirs: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    if all(place_of(name, theirs) is None for name in ours):
        known, known_too = places_of(ours, classes), places_of(theirs, classes)
        if None not in known and None not in known_too:
            return [known_too.index(number) if number in known_too else None for number in known]
    return places_of(ours, theirs)


def mismatch(lm: LanguageModel, classes: Sequence[str], whose: str) -> UserError:
    """The sentence for names that do not match; `classes` are those of `whose`, a data set or another model."""
    ours = class_names(lm)
    owner = "label_order" if lm.label_order is not None else f"The model {called(lm)}" if lm.source else "The model"
    return UserError(
        f"{owner} has the classes {listed(ours)}, and {whose} has {listed(classes)}, which do not match by name; give "
        "label_order (--label-order on the command line): the latter names in the order of the model's outputs."
    )


def called(lm: LanguageModel) -> str:
    """The model's name in a sentence."""
    return f"'{lm.source}'" if lm.source else "the model"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - FEWEST} more" if len(names) > FEWEST else ""
    return ", ".join(names[:FEWEST]) + more
