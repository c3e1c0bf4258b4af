"""Labels of rows, read for models of every problem type; every label that cannot be is named with its row."""

from typing import Any

import pytest

from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example, label_from
from laconic.calibrate.labels import convert_labels
from laconic.errors import UserError
from tests.architectures import BY_NAME
from tests.problems import MULTI_LABEL, classifier


def corpus(*labels: Any, classes: tuple[str, ...] = ()) -> Corpus:
    """Rows with these labels, as a JSON file would have them."""
    rows = (Example("a", label=label_from(label), place=f"a.jsonl:{at}") for at, label in enumerate(labels, start=1))
    return Corpus("a.jsonl", "train", tuple(rows), classes)


SENTIMENT = ("negative", "positive")
STARS = ("1", "2", "3")


@pytest.mark.parametrize(
    ("names", "classes", "labels", "expected"),
    [
        # Numbers of classes that have no names are the model's.
        (None, (), (0, 1, 1.0, "1"), [0, 1, 1, 1]),
        (("POSITIVE", "NEGATIVE"), (), (0, 1), [0, 1]),
        # By name, in any spelling.
        (("POSITIVE", "NEGATIVE"), (), ("positive", "neg", "Pos"), [0, 1, 0]),
        # By number of a class that the data names.
        (("POSITIVE", "NEGATIVE"), SENTIMENT, (0, 1, "positive"), [1, 0, 0]),
        (None, SENTIMENT, (0, 1, "positive"), [0, 1, 1]),
        (("LABEL_1", "LABEL_0"), SENTIMENT, (0, 1, "neg"), [1, 0, 1]),
        (("LABEL_1", "LABEL_0"), (), (0, 1, "LABEL_1"), [1, 0, 0]),
        # Numbers that are names.
        (STARS, (), (1, 3, "2"), [0, 2, 1]),
        (("-1", "0", "1"), (), (-1, 0, 1), [0, 1, 2]),
        (("1", "2", "other"), (), (2, "other", 1), [1, 2, 0]),
        # Truth values.
        (None, (), (True, False), [1, 0]),
        (("True", "False"), (), (True, False), [0, 1]),
        (("yes", "no"), (), (True, False), [0, 1]),
        (("true", "false"), (), (1, 0), [0, 1]),
        (("no", "yes"), ("yes", "no"), ("Yes", 1), [1, 0]),
    ],
)
def test_classes(names: tuple[str, ...] | None, classes: tuple[str, ...], labels: tuple[Any, ...], expected: list[int]):
    lm = classifier(2 if names is None else len(names), names)
    assert convert_labels(lm, corpus(*labels, classes=classes)) == expected


def test_an_order_that_is_given_says_what_the_data_calls_the_outputs() -> None:
    assert convert_labels(classifier(2).with_label_order(("good", "bad")), corpus("bad", "good")) == [1, 0]
    assert convert_labels(classifier(2).with_label_order((1, 0)), corpus(0, 1)) == [1, 0]
    assert convert_labels(classifier(2).with_label_order((1, 0)), corpus(0, 1, classes=SENTIMENT)) == [1, 0]
    named = classifier(2, ("a", "b")).with_label_order(("positive", "negative"))
    assert convert_labels(named, corpus(0, 1, classes=SENTIMENT)) == [1, 0]


NAMED = ("negative", "positive")


@pytest.mark.parametrize(
    ("names", "classes", "labels", "sentence"),
    [
        (None, (), (None, None), r"The train split of 'a\.jsonl' has no labels"),
        (None, (), (-1, -1.0), "has no labels"),
        (None, (), (0, None, 1), r"a\.jsonl:2 has no label, and of 3 rows 2 have one; label the row or leave it out"),
        (None, (), (0, 1, -1), r"a\.jsonl:3 has no label"),
        (None, (), (0, ""), r"a\.jsonl:2 has no label"),
        (None, (), (0, 2), r"a\.jsonl:2 has the label 2, which is none of the classes of 'tiny': 0 LABEL_0, 1 LABEL_1"),
        (NAMED, (), (0, 3), r"a\.jsonl:2 has the label 3, .* of 'tiny': 0 negative, 1 positive; fix the row, or give"),
        (NAMED, (), (0, 0.5), r"a\.jsonl:2 has the label 0\.5"),
        (None, (), (0, float("nan")), r"a\.jsonl:2 'nan'; call the classes of all rows by name, or all by number"),
        (
            NAMED,
            (),
            ("positive", "postive"),
            r"a\.jsonl:2 has the label 'postive', which is none of the classes of",
        ),
        (NAMED, SENTIMENT, (0, 2), r"a\.jsonl:2 has the label 2, which is none of the classes of 'a\.jsonl': 0 negati"),
        (NAMED, SENTIMENT, (0, "x"), r"a\.jsonl:2 has the label 'x'.*; fix the row\."),
        (
            ("good", "bad"),
            SENTIMENT,
            (0, 1),
            r"'tiny' has the classes good, bad, and 'a\.jsonl' has negative, pos",
        ),
        (
            ("good", "bad"),
            (),
            ("pos", "neg"),
            r"has the classes good, bad, and 'a\.jsonl' has pos, neg, which do",
        ),
        (
            None,
            (),
            ("pos", "neg"),
            r"has the classes LABEL_0, LABEL_1, and 'a\.jsonl' has pos, neg, which do",
        ),
        (NAMED, (), (True, False), r"which do not match by name; give label_order \(--label-order on the command line"),
        (
            None,
            (),
            ("entailment", 1, 1),
            r"a\.jsonl:2 has the label 1, and a\.jsonl:1 'entailment'; call",
        ),
        (NAMED, (), ("positive", "0"), r"a\.jsonl:2 has the label 0, and a\.jsonl:1 'positive'"),
        (
            NAMED,
            (),
            ("positive", ["negative"]),
            r"a\.jsonl:2 has a list of labels, and 'tiny' predicts one of 2",
        ),
        (NAMED, (), ("Paris", "Rome"), r"and 'a\.jsonl' has Paris, Rome, which do not match by name"),
        (None, (), ({"text": "Paris"}, 1), "call the classes of all rows by name"),
    ],
)
def test_what_is_no_class_is_named(names, classes: tuple[str, ...], labels: tuple[Any, ...], sentence: str) -> None:
    lm = classifier(2, names)
    with pytest.raises(UserError, match=sentence):
        convert_labels(lm, corpus(*labels, classes=classes))


EMOTIONS = ("anger", "joy", "fear")


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        ((), ([0, 1, 1], [1, 0, 0], [0, 0, 0]), [(0, 1, 1), (1, 0, 0), (0, 0, 0)]),
        ((), ([False, True, True],), [(0, 1, 1)]),
        ((), (["fear", "JOY"], [], "anger"), [(0, 1, 1), (0, 0, 0), (1, 0, 0)]),
        ((), ([2], [1, 0]), [(0, 0, 1), (1, 1, 0)]),
        (("fear", "anger", "joy"), ([0, 1], [2]), [(1, 0, 1), (0, 1, 0)]),
        # Of what the source declares numbers are classes, as many as they may be.
        (("fear", "anger", "joy"), ([0, 1, 1],), [(1, 0, 1)]),
    ],
)
def test_several_labels(classes: tuple[str, ...], labels: tuple[Any, ...], expected: list[tuple[float, ...]]) -> None:
    assert convert_labels(classifier(3, EMOTIONS, MULTI_LABEL), corpus(*labels, classes=classes)) == expected


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (([0, 1], [0, 1, 2, 3]), r"a\.jsonl:2 has the label 3, which is none of the classes of 'tiny': 0 anger"),
        # One row of another form does not make numbers of labels of a 0 or 1 for each.
        (
            ([0, 1, 1], [0, 1, 2, 3]),
            r"jsonl:1 has the label \[0, 1, 1\], a 0 or 1 for each .*jsonl:2 has \[0, 1, 2, 3\]",
        ),
        (([0, 1, 1], [1, 0]), r"jsonl:1 has the label \[0, 1, 1\], a 0 or 1 for each of the 3 labels of 'tiny'"),
        (([2, 0, 1], [1, 0, 0]), r"jsonl:2 has the label \[1, 0, 0\], .* and a\.jsonl:1 has \[2, 0, 1\]; fix the row"),
        (([1, 0, 0], 1), r"a\.jsonl:2 has \[1\]; fix the row, or write all rows in one way"),
        ((["joy"], ["joy", "hope"]), r"a\.jsonl:2 has the label 'hope'"),
        ((["joy"], None), r"a\.jsonl:2 has no label"),
        (([0, 1, 1], [0, None, 1]), "a.jsonl:2, entry 2 has no label"),
        (([0, 1], [0, None]), "a.jsonl:2, entry 2 has no label"),
        ((["joy"], -1), r"a\.jsonl:2 has no label \(-1 means none\), and of 2 rows 1 have one"),
    ],
)
def test_what_is_none_of_several_labels_is_named(labels: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        convert_labels(classifier(3, EMOTIONS, MULTI_LABEL), corpus(*labels))


def test_scores() -> None:
    assert convert_labels(classifier(1), corpus(0.5, "-1", [3])) == [0.5, -1.0, 3.0]
    assert convert_labels(classifier(2, problem_type="regression"), corpus([0.5, -1], [1, 2])) == [
        (0.5, -1.0),
        (1.0, 2.0),
    ]


@pytest.mark.parametrize(
    ("outputs", "label", "sentence"),
    [
        (1, "good", r"a\.jsonl:2 has the label 'good'; 'tiny' predicts scores, so it must be a finite number"),
        (1, float("inf"), "has the label 'inf'"),
        (1, True, "has the label 'true'"),
        (1, [1, 2], r"has the label \[1, 2\]"),
        (2, 1, "must be a list of 2 finite numbers, as the model has 2 outputs"),
        (2, [1, "x"], r"has the label \[1, 'x'\]"),
    ],
)
def test_what_is_no_score_is_named(outputs: int, label: Any, sentence: str) -> None:
    lm = classifier(outputs, problem_type="regression")
    with pytest.raises(UserError, match=sentence):
        convert_labels(lm, corpus(0.5 if outputs == 1 else [0.5, 0.5], label))


def test_a_row_without_a_place_is_called_by_its_number() -> None:
    with pytest.raises(UserError, match="Row 2 of 'memory' has no label"):
        convert_labels(classifier(2), Corpus("memory", "train", (Example("a", label=0.0), Example("b"))))


def test_labels_are_read_where_they_are_asked_for_alone() -> None:
    odd = corpus("Paris", None, 7)
    assert "labels" not in batches(classifier(2), odd)[0]
    with pytest.raises(UserError, match="has no label"):
        batches(classifier(2), odd, labelled=True)
    for name in ("bert-base", "gpt2"):
        from tests.evaluate.models import with_tokenizer

        assert "labels" not in batches(with_tokenizer(BY_NAME[name].lm()), corpus("Paris", 7), labelled=True)[0]


def test_labels_of_several_outputs_are_a_table() -> None:
    [batch] = batches(classifier(3, EMOTIONS, MULTI_LABEL), corpus(["joy"], []), labelled=True)
    assert batch["labels"].tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
