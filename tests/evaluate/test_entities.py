"""Counts of entities give the metrics that seqeval gives."""

import numpy as np
import pytest
from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score

from laconic.evaluate.entities import count_entities, entity_metrics, entity_types
from laconic.evaluate.metrics import Scores, interval, rows_counted
from laconic.evaluate.paired import difference

TYPES = ("LOC", "MISC", "PER")
BIO = ("O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI"))
BIOES = ("O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BIES"))


def random_tags(generator: np.random.Generator, tags: tuple[str, ...], sizes: list[int]) -> list[list[str]]:
    return [[tags[at] for at in generator.integers(len(tags), size=size)] for size in sizes]


def table_of(true: list[list[str]], found: list[list[str]]) -> Scores:
    lines = [
        [sum(map(str.__eq__, one, two)), len(one), *count_entities(one, two, TYPES)]
        for one, two in zip(true, found, strict=True)
    ]
    return np.array(lines, dtype=np.float64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tags", [BIO, BIOES, BIO[:3], ("O",)])
def test_metrics_equal_those_of_seqeval_on_random_predictions(seed: int, tags: tuple[str, ...]):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 30, size=50).tolist()
    true, found = random_tags(generator, tags, sizes), random_tags(generator, tags, sizes)
    # Some words are right, so that some entities are.
    for one, two in zip(true, found, strict=True):
        two[: len(one) // 2] = one[: len(one) // 2]
    table = table_of(true, found)
    ours = {name: metric(table) for name, metric in entity_metrics(TYPES).items()}
    references = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    assert {name: ours[name] for name in references} == pytest.approx(
        {name: reference(true, found, zero_division=0) for name, reference in references.items()}
    )
    assert ours["accuracy"] == pytest.approx(accuracy_score(true, found))
    if tags != ("O",):
        report = classification_report(true, found, output_dict=True, zero_division=0)
        for kind in set(TYPES) & set(report):
            assert ours[f"f1/{kind}"] == pytest.approx(report[kind]["f1-score"])


def test_types_are_those_of_tags():
    assert entity_types(BIOES) == TYPES and entity_types(("O", "B-PER", "I-PER")) == ("PER",)
    assert entity_types(("NN", "VB")) == () and entity_types(("O", "B-PER", "other")) == ()
    assert list(entity_metrics(())) == ["accuracy"]
    assert list(entity_metrics(("PER",))) == ["f1", "precision", "recall", "accuracy"]


def test_two_models_are_compared_on_the_sentences_with_entities():
    generator = np.random.default_rng(0)
    sizes = generator.integers(3, 20, size=300).tolist()
    true, worse = random_tags(generator, BIO, sizes), random_tags(generator, BIO, sizes)
    better = [one if at % 3 else two for at, (one, two) in enumerate(zip(true, worse, strict=True))]
    ours, theirs = table_of(true, better), table_of(true, worse)
    for metric in entity_metrics(TYPES).values():
        change = difference(metric, ours, theirs)
        found = interval(metric, ours)
        assert change.low < change.value < change.high and change.p < 0.01
        assert found.low < found.value < found.high
    empty = np.zeros((4, ours.shape[1]))
    f1 = entity_metrics(TYPES)["f1"]
    assert f1(empty) == 0 and not rows_counted(f1, empty).any()
