"""F1 of several labels equals scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.errors import UserError
from laconic.evaluate.metrics import interval
from laconic.evaluate.multi_label import METRICS, MultiLabel
from laconic.evaluate.paired import difference
from laconic.evaluate.tasks import check_task
from laconic.model import predict
from laconic.progress import silent
from tests.evaluate.models import with_tokenizer
from tests.problems import MULTI_LABEL, classifier

NAMES = ("joy", "anger", "fear")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "labels", "positive"), [(200, 5, 0.3), (30, 12, 0.05), (50, 1, 0.5)])
def test_metrics_equal_the_reference_on_random_predictions(seed: int, rows: int, labels: int, positive: float):
    generator = np.random.default_rng(seed)
    table = (generator.random((rows, 2 * labels)) < positive).astype(float)
    true, found = np.split(table, 2, axis=1)
    if labels > 1:
        for average in ("micro", "macro"):
            reference = f1_score(true, found, average=average, zero_division=0)
            assert METRICS[f"f1_{average}"](table) == pytest.approx(reference)
    assert METRICS["accuracy"](table) == pytest.approx(accuracy_score(true, found))


def test_two_models_are_compared_by_each_metric():
    generator = np.random.default_rng(0)
    true, found = (generator.random((400, 4)) < 0.4).astype(float), (generator.random((400, 4)) < 0.4).astype(float)
    better = np.where(generator.random((400, 1)) < 0.5, true, found)
    for metric in METRICS.values():
        ours, theirs = np.hstack((true, better)), np.hstack((true, found))
        change, value = difference(metric, ours, theirs), interval(metric, ours)
        assert 0 < change.low < change.value < change.high and change.p < 0.01
        assert value.low < value.value < value.high


def test_the_task_equals_the_signs_of_the_logits():
    lm = with_tokenizer(classifier(3, problem_type=MULTI_LABEL)).with_label_order(NAMES)
    texts = ("a tale", "of two cities", "it was", "the best of times", "wisdom", "an age", "of hope")
    labels = (("joy",), (), ("fear", "anger"), ("joy", "fear"), NAMES, ("anger",), ("joy",))
    corpus = Corpus("x", "dev", tuple(Example(text, label=label) for text, label in zip(texts, labels, strict=True)))
    result = MultiLabel("x").evaluate(lm, corpus, silent)
    with torch.no_grad():
        logits = torch.cat([predict(lm, batch)[0].values for batch in batches(lm, corpus, batch_size=1)])
    true = [[float(name in label) for name in NAMES] for label in labels]
    assert result.table.tolist() == [[*row, *map(float, signs)] for row, signs in zip(true, logits > 0, strict=True)]
    assert result.settings["classes"] == list(NAMES)


def test_a_label_that_the_model_lacks_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LACONIC_DATA", raising=False)
    lm = with_tokenizer(classifier(3, problem_type=MULTI_LABEL)).with_label_order(NAMES)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "labels": ["joy"]}\n{"text": "b", "labels": ["joy", "envy"]}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2 has the label 'envy', which is none of the classes"):
        check_task(f"multi-label:{path}", lm)
