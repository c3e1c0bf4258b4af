"""Classes meet by name, whatever they are spelled like, and by number where one side has nothing else."""

from dataclasses import replace

import pytest

from laconic.calibrate.classes import (
    canonical_name,
    class_names,
    class_number,
    find_class,
    match_classes,
    match_outputs,
    share_label_order,
)
from laconic.calibrate.sources import TASKS
from laconic.errors import UserError
from laconic.model import LanguageModel
from laconic.recover import Distil
from tests.problems import MULTI_LABEL, classifier

SAME = (
    ("negative", "NEG", "Negative", "neg "),
    ("positive", "pos", "POSITIVE"),
    ("neutral", "NEU"),
    ("entailment", "ENTAILMENT", "entails"),
    ("contradiction", "Contradiction", "contradicts"),
    ("not_entailment", "not-entailment", "Not Entailment", "NOT_ENTAILMENT", "notentailment", "non-entailment"),
    ("acceptable", "Acceptable", "grammatical"),
    ("unacceptable", "not acceptable", "UNACCEPTABLE", "ungrammatical", "not_grammatical"),
    ("equivalent", "paraphrase", "is_paraphrase", "duplicate", "is a duplicate", "Is_Duplicate"),
    ("not_equivalent", "not_duplicate", "non-paraphrase", "not a paraphrase", "no_duplicate", "NotEquivalent"),
    ("true", "True", "yes", "Yes"),
    ("false", "no", "FALSE"),
    ("LABEL_1", "label_1", "class 1", "1", "Class-1", "01"),
    ("-1",),
    ("Sci/Tech", "sci/tech"),
    ("1 star", "1_star"),
    ("notable",),
)


def test_every_spelling_of_a_class_has_one_meaning_and_no_other_class_has_it() -> None:
    meanings = [{canonical_name(name) for name in names} for names in SAME]
    assert [len(found) for found in meanings] == [1] * len(SAME)
    assert len(set.union(*meanings)) == len(SAME)


def test_numbers() -> None:
    names = ("LABEL_12", "class_3", "7", "-1", "label", "1.5", "LABEL_-1", "1st", "LABEL_x")
    assert [class_number(name) for name in names] == [12, 3, 7, -1, None, None, None, None, None]


@pytest.mark.parametrize(
    ("names", "among", "places"),
    [
        (("negative", "positive"), ("POS", "NEG"), [1, 0]),
        (("entailment", "neutral", "contradiction"), ("CONTRADICTION", "entailment", "NEUTRAL"), [1, 2, 0]),
        # By number, on either side.
        (("negative", "positive"), ("LABEL_0", "LABEL_1"), [0, 1]),
        (("negative", "positive"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("LABEL_1", "LABEL_0"), ("negative", "positive"), [1, 0]),
        (("0", "1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        # Of three sentiments two are asked for.
        (("negative", "positive"), ("negative", "neutral", "positive"), [0, 2]),
        (("neg", "pos", "unsup"), ("LABEL_0", "LABEL_1"), [0, 1, None]),
        (("neg", "pos", "unsup"), ("positive", "negative"), [1, 0, None]),
        # Nothing is guessed.
        (("good", "bad"), ("negative", "positive"), [None, None]),
        (("one", "two", "three"), ("1", "2", "3"), [None, None, None]),
        # Two classes of one side are never one of the other, and what is spelled alike comes before synonyms.
        (("duplicate", "paraphrase"), ("equivalent", "other"), [None, None]),
        (("duplicate", "paraphrase"), ("paraphrase", "duplicate"), [1, 0]),
        (("x", "y"), ("x", "x"), [None, None]),
    ],
)
def test_where_classes_are(names: tuple[str, ...], among: tuple[str, ...], places: list[int | None]) -> None:
    assert match_classes(names, among) == places


def test_one_class_among_others() -> None:
    assert find_class("pos", ("negative", "positive")) == 1
    assert find_class("good", ("negative", "positive")) is None


def test_the_classes_of_every_glue_task_are_its_names_on_the_hub() -> None:
    found = {task.name: task.classes for task in TASKS}
    assert found == {
        "cola": ("unacceptable", "acceptable"),
        "mrpc": ("not_equivalent", "equivalent"),
        "qnli": ("entailment", "not_entailment"),
        "qqp": ("not_duplicate", "duplicate"),
        "rte": ("entailment", "not_entailment"),
        "sst2": ("negative", "positive"),
        "stsb": (),
        "wnli": ("not_entailment", "entailment"),
        "mnli": ("entailment", "neutral", "contradiction"),
        "mnli-mm": ("entailment", "neutral", "contradiction"),
    }


def named(*names: str) -> LanguageModel:
    return classifier(len(names), names)


def test_outputs_of_two_models_meet_by_name() -> None:
    lm = named("POSITIVE", "NEGATIVE", "NEUTRAL")
    assert match_outputs(lm, named("neg", "neu", "pos")) == [2, 0, 1]
    assert match_outputs(lm, named("pos", "neg", "neutral")) is None
    assert match_outputs(lm, classifier(3)) is None
    assert match_outputs(lm, named("LABEL_2", "LABEL_0", "LABEL_1")) == [1, 2, 0]
    scores = classifier(2, ("valence", "arousal"), "regression")
    assert match_outputs(scores, classifier(2, ("arousal", "valence"), "regression")) == [1, 0]
    labels = classifier(2, ("joy", "anger"), MULTI_LABEL)
    assert match_outputs(labels, classifier(2, ("anger", "joy"), MULTI_LABEL)) == [1, 0]
    # One output has no order.
    assert match_outputs(classifier(1, ("score",)), classifier(1)) is None


def test_numbers_and_names_meet_by_what_the_data_calls_its_classes() -> None:
    swapped, numbered = named("POSITIVE", "NEGATIVE"), classifier(2)
    assert match_outputs(numbered, swapped, ("negative", "positive")) == [1, 0]
    assert match_outputs(swapped, numbered, ("negative", "positive")) == [1, 0]
    step = Distil(teacher="swapped")
    assert step.loss_terms(numbered, swapped, {}, ("negative", "positive")).places == (1, 0)
    # Of data that does not say, numbers are those of the outputs.
    assert step.loss_terms(numbered, swapped, {}).places is None


def test_an_order_that_another_model_does_not_know_is_not_guessed_by_number() -> None:
    lm = classifier(2).with_label_order(("x", "y"))
    with pytest.raises(UserError, match="label_order has the classes x, y, and 'tiny' has good, bad"):
        match_outputs(lm, named("good", "bad"))
    assert match_outputs(classifier(2).with_label_order(("bad", "good")), named("good", "bad")) == [1, 0]


def test_outputs_that_do_not_match_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"'tiny' has the classes pos, neg, and 'tiny' has good, bad, .* label_order"):
        match_outputs(named("pos", "neg"), named("good", "bad"))
    with pytest.raises(UserError, match="'tiny' has 2 outputs and 'tiny' 3, so that they cannot be compared"):
        match_outputs(classifier(2), classifier(3))


def test_an_order_that_is_given_counts_and_is_that_of_every_model_of_the_same_names() -> None:
    lm = named("good", "bad").with_label_order(("pos", "neg"))
    assert class_names(lm) == ("pos", "neg")
    assert match_outputs(lm, named("negative", "positive")) == [1, 0]
    assert match_outputs(lm, named("good", "bad")) is None
    # Another model may be called as config.json has it, and not as the data does.
    assert match_outputs(lm, named("bad", "good")) == [1, 0]
    assert share_label_order(named("good", "bad"), lm).label_order == ("pos", "neg")
    assert share_label_order(named("bad", "good"), lm).label_order is None
    assert class_names(classifier(2).with_label_order([True, False])) == ("True", "False")


@pytest.mark.parametrize("order", [("a",), ("a", "b", "c"), ("a", "A"), ("a b", "a_b")])
def test_an_order_names_every_output_once(order: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="label_order must name each of the 2 outputs of 'tiny' once"):
        class_names(classifier(2).with_label_order(order))


def test_a_configuration_that_contradicts_itself_is_named() -> None:
    lm = named("NEG", "POS")
    lm.model.config.label2id = {"NEG": 1, "POS": 0}
    with pytest.raises(UserError, match=r"contradicts itself: by id2label 'NEG' is output 0, and by label2id 1"):
        class_names(lm)
    assert class_names(lm.with_label_order(("neg", "pos"))) == ("neg", "pos")
    # As transformers leaves it where id2label alone was set.
    lm.model.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    assert class_names(lm) == ("NEG", "POS")


def test_a_name_that_is_missing_is_a_number() -> None:
    lm = classifier(2)
    lm.model.config.id2label = {1: "a", 2: "b"}
    assert class_names(replace(lm)) == ("LABEL_0", "a")
