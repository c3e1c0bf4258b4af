"""SQuAD's metrics equal those of torchmetrics, and for questions without an answer the definition of SQuAD 2.0."""

import random
import re
import string
from collections import Counter

import numpy as np
import pytest
from torchmetrics.functional.text import squad

from laconic.evaluate.metrics import interval
from laconic.evaluate.paired import difference
from laconic.evaluate.squad import answer_metrics, answer_scores, normalize_answer

WORDS = ("the", "a", "An", "tower", "Tower,", "of", "London", "London.", "ran", "(ran)", "it's", "1,902", "–", "...")


def random_text(generator: random.Random, least: int = 0) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(least, 5)))


def random_questions(seed: int, count: int = 200) -> list[tuple[str, list[str]]]:
    generator = random.Random(seed)
    return [
        (random_text(generator), [random_text(generator, 1) + " x" for _ in range(generator.randint(1, 3))])
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_the_reference_on_random_predictions(seed: int):
    questions = random_questions(seed)
    reference = squad(
        [{"prediction_text": answer, "id": str(at)} for at, (answer, _) in enumerate(questions)],
        [
            {"answers": {"text": right, "answer_start": [0] * len(right)}, "id": str(at)}
            for at, (_, right) in enumerate(questions)
        ],
    )
    table = np.array([(*answer_scores(*question), 1, 1) for question in questions])
    metrics = answer_metrics({"unanswerable": 0})
    assert list(metrics) == ["f1", "exact_match"]
    assert 100 * metrics["f1"](table) == pytest.approx(float(reference["f1"]), rel=1e-5)
    assert 100 * metrics["exact_match"](table) == pytest.approx(float(reference["exact_match"]), rel=1e-5)


def defined(answer: str, right: list[str]) -> tuple[float, float]:
    """Exact match and F1 as SQuAD 2.0 defines them, by precision and recall of a bag of words."""

    def words(text: str) -> list[str]:
        kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def f1(found: list[str], wanted: list[str]) -> float:
        if not found or not wanted:
            return float(found == wanted)
        same = sum(min(count, Counter(wanted)[word]) for word, count in Counter(found).items())
        precision, recall = same / len(found), same / len(wanted)
        return 2 * precision * recall / (precision + recall) if same else 0.0

    gold = [words(text) for text in right if words(text)] or [[]]
    found = words(answer)
    return float(max(found == wanted for wanted in gold)), max(f1(found, wanted) for wanted in gold)


@pytest.mark.parametrize("seed", range(4))
def test_questions_without_an_answer_follow_the_definition(seed: int):
    generator = random.Random(seed)
    for answer, right in random_questions(seed, 300):
        some = right if generator.random() < 0.5 else generator.choice(([], ["the", "..."], ["a"]))
        assert answer_scores(answer, some) == pytest.approx(defined(answer, some))
    assert answer_scores("", []) == (1.0, 1.0) and answer_scores("London", []) == (0.0, 0.0)
    assert normalize_answer("The  Tower, of\tLondon.") == "tower of london"


def test_questions_with_and_without_an_answer_are_told_apart():
    # Exact match, F1, whether there is an answer, weight.
    table = np.array([[1, 1, 1, 1], [0, 0.5, 1, 1], [1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]])
    found = {name: metric(table) for name, metric in answer_metrics({"unanswerable": 3}).items()}
    assert found == pytest.approx(
        {
            "f1": 0.5,
            "exact_match": 0.4,
            "f1/answerable": 0.75,
            "exact_match/answerable": 0.5,
            "exact_match/unanswerable": 1 / 3,
        }
    )
    ours, theirs = np.tile(table, (60, 1)), np.tile(table, (60, 1))
    theirs[:, 0] = theirs[:, 1] = 0
    for metric in answer_metrics({"unanswerable": 3}).values():
        change, value = difference(metric, ours, theirs), interval(metric, ours)
        assert 0 < change.low <= change.value <= change.high and change.p < 0.01
        assert value.low < value.value < value.high
