"""GLUE's metrics equal the reference implementations, and models are matched with tasks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.sources import TASKS, glue_task, read
from laconic.errors import UserError
from laconic.evaluate.glue import METRICS, Glue, accuracy, f1, matthews, pearson, spearman
from laconic.model import LanguageModel, predict
from laconic.progress import silent
from tests.architectures import BY_NAME
from tests.evaluate.models import with_tokenizer
from tests.problems import MULTI_LABEL
from tests.problems import classifier as problem_classifier


def classifier(labels: int, names: list[str] | None = None) -> LanguageModel:
    from transformers import BertForSequenceClassification

    lm = with_tokenizer("bert-classifier")
    config = type(lm.model.config)(**{**lm.model.config.to_dict(), "num_labels": labels})
    if names:
        config.id2label = dict(enumerate(names))
    torch.manual_seed(0)
    return with_tokenizer(LanguageModel.of(BertForSequenceClassification(config).eval()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "positive"), [(200, 0.5), (1043, 0.7), (13, 0.2)])
def test_metrics_equal_the_reference_on_random_predictions(seed: int, rows: int, positive: float):
    generator = np.random.default_rng(seed)
    table = (generator.random((rows, 2)) < positive).astype(float)
    truth, said = table.T
    assert accuracy(table) == pytest.approx(metrics.accuracy_score(truth, said))
    assert f1(table) == pytest.approx(metrics.f1_score(truth, said))
    assert matthews(table) == pytest.approx(metrics.matthews_corrcoef(truth, said))
    scores = generator.normal(size=(rows, 2))
    assert pearson(scores) == pytest.approx(stats.pearsonr(*scores.T)[0])
    assert spearman(scores) == pytest.approx(stats.spearmanr(*scores.T)[0])


def test_three_classes_are_judged_by_accuracy_as_the_reference_does():
    table = np.random.default_rng(0).integers(3, size=(500, 2)).astype(float)
    assert accuracy(table) == pytest.approx(metrics.accuracy_score(*table.T))


# Of the dev splits; MRPC's, 68.4 and an F1 of 81.2, and CoLA's 0 are those of a constant prediction in the literature
# (GLUE's table 2 has those of the hidden test splits).
MAJORITY = {
    "sst2": {"accuracy": 0.5092},
    "mrpc": {"accuracy": 0.6838, "f1": 0.8122},
    "rte": {"accuracy": 0.5271},
    "qnli": {"accuracy": 0.5054},
    "wnli": {"accuracy": 0.5634},
    "cola": {"matthews": 0.0},
}


@pytest.mark.parametrize("task", MAJORITY)
def test_the_majority_class_scores_its_published_figure(task: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LACONIC_DATA", str(shared_data))
    labels = np.array([example.label for example in read(f"glue/{task}", "dev").examples])
    majority = np.bincount(labels.astype(int)).argmax()
    table = np.stack((labels, np.full(len(labels), majority)), axis=1)
    named = METRICS.get(task, {"accuracy": accuracy})
    assert {name: metric(table) for name, metric in named.items()} == pytest.approx(MAJORITY[task], abs=5e-5)


@pytest.mark.parametrize("metric", [f1, matthews, pearson, spearman])
def test_a_constant_prediction_is_worth_nothing(metric):
    assert metric(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])) == 0.0


def test_each_task_has_its_official_metrics():
    found = {task.name: set(METRICS.get(task.name, {"accuracy": accuracy})) for task in TASKS}
    assert found == {
        "cola": {"matthews"},
        "mrpc": {"f1", "accuracy"},
        "qqp": {"f1", "accuracy"},
        "stsb": {"pearson", "spearman"},
        **{name: {"accuracy"} for name in ("sst2", "mnli", "mnli-mm", "qnli", "rte", "wnli")},
    }


def test_the_table_is_what_the_model_says_in_order():
    lm = classifier(2)
    words = ["good", "bad film", "dull, dull", "fine"] * 10
    corpus = Corpus("glue/sst2", "dev", tuple(Example(text, label=float(at % 2)) for at, text in enumerate(words)))
    table = Glue(glue_task("sst2")).evaluate(lm, corpus, silent).table
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    with torch.no_grad():
        said = [int(lm.model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in words]
    assert table.tolist() == [[float(at % 2), float(said[at])] for at in range(len(words))]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("sst2", ("POSITIVE", "NEGATIVE")),
        ("cola", ("Acceptable", "not acceptable")),
        ("mrpc", ("paraphrase", "not-paraphrase")),
        ("qqp", ("is_duplicate", "not_duplicate")),
        ("rte", ("not_entailment", "ENTAILMENT")),
        ("wnli", ("entailment", "NOT ENTAILMENT")),
        ("qnli", ("LABEL_1", "LABEL_0")),
    ],
)
def test_classes_in_another_order_are_matched_by_name_in_every_task(task: str, names: tuple[str, ...]):
    """The plain model has GLUE's order, and the other's rows are swapped with their names."""
    corpus = Corpus(f"glue/{task}", "dev", tuple(Example(chr(97 + at) * 3, "b", label=at % 2) for at in range(26)))
    plain = problem_classifier(2)
    swapped = problem_classifier(2, names)
    with torch.no_grad():
        [batch] = batches(plain, corpus, batch_size=26)
        # So that half of the rows are of each class.
        plain.model.get_parameter("classifier.bias").sub_(predict(plain, batch)[0].values.median(0).values)
        for name in ("classifier.weight", "classifier.bias"):
            swapped.model.get_parameter(name).copy_(plain.model.get_parameter(name).flip(0))
    judged = [Glue(glue_task(task)).evaluate(lm, corpus, silent) for lm in (plain, swapped)]
    assert (judged[0].table == judged[1].table).all() and len(set(judged[0].table[:, 1])) == 2
    assert judged[1].settings["classes"] == judged[0].settings["classes"][::-1]


def test_names_that_do_not_match_are_one_sentence_and_an_order_helps():
    task = Glue(glue_task("sst2"))
    lm = problem_classifier(2, ("good", "bad"))
    sentence = r"The model 'tiny' has the classes good, bad, and 'glue/sst2' has negative, positive, .* label_order"
    with pytest.raises(UserError, match=sentence):
        task.check_model(lm)
    with pytest.raises(UserError, match="label_order has the classes bad, good, and 'glue/sst2' has"):
        task.check_model(lm.with_label_order(("bad", "good")))
    corpus = Corpus("glue/sst2", "dev", (Example("a", label=1.0),))
    assert task.evaluate(lm.with_label_order((1, 0)), corpus, silent).settings["classes"] == ["positive", "negative"]
    assert task.evaluate(lm.with_label_order(("pos", "neg")), corpus, silent).table[0, 0] == 1


def test_classes_in_another_order_are_matched_by_name():
    task = Glue(glue_task("mnli"))
    corpus = Corpus("glue/mnli", "dev", tuple(Example("a" * at, "b", label=0.0) for at in range(1, 30)))
    plain = task.evaluate(classifier(3), corpus, silent).table[:, 1]
    reversed_names = ["CONTRADICTION", "neutral", "entailment"]
    turned = task.evaluate(classifier(3, reversed_names), corpus, silent).table[:, 1]
    assert turned.tolist() == (2 - plain).tolist()


def test_a_model_of_another_kind_is_refused():
    corpus = Corpus("glue/sst2", "dev", (Example("a", label=0.0),))
    with pytest.raises(UserError, match=r"'glue/sst2' needs a model with num_labels 2; .* has 3"):
        Glue(glue_task("sst2")).evaluate(classifier(3), corpus, silent)
    with pytest.raises(UserError, match="'glue/stsb' needs a model with num_labels 1"):
        Glue(glue_task("stsb")).evaluate(classifier(3), corpus, silent)
    with pytest.raises(UserError, match=r"needs a classification or regression model; .* is a causal model"):
        Glue(glue_task("sst2")).evaluate(with_tokenizer("llama"), corpus, silent)
    with pytest.raises(UserError, match=r"needs a classification or regression model; 'tiny' is a multi-label model"):
        Glue(glue_task("sst2")).evaluate(problem_classifier(2, problem_type=MULTI_LABEL), corpus, silent)
    with pytest.raises(UserError, match=r"'glue/sst2' needs a classification model; 'tiny' is a regression model, by"):
        Glue(glue_task("sst2")).evaluate(problem_classifier(2, problem_type="regression"), corpus, silent)
    with pytest.raises(UserError, match="is an embedding model"):
        Glue(glue_task("sst2")).evaluate(with_tokenizer("bert-base"), corpus, silent)
    with pytest.raises(UserError, match="The dev split of 'x' has no labels"):
        Glue(glue_task("sst2")).evaluate(classifier(2), Corpus("x", "dev", (Example("a"),)), silent)


def test_a_model_that_predicts_nan_is_refused():
    lm = classifier(2)
    lm.model.get_parameter("classifier.bias").data[0] = torch.nan
    with pytest.raises(UserError, match="predicts NaN or infinite values"):
        Glue(glue_task("sst2")).evaluate(lm, Corpus("x", "dev", (Example("a", label=0.0),)), silent)


def test_dropout_is_off_and_the_model_left_as_it_was():
    lm = classifier(2)
    lm.model.train()
    corpus = Corpus("x", "dev", tuple(Example("abc" * at, label=0.0) for at in range(1, 9)))
    judged = Glue(glue_task("sst2")).evaluate
    assert (judged(lm, corpus, silent).table == judged(lm, corpus, silent).table).all()
    assert lm.model.training
    assert BY_NAME["bert-classifier"].lm().task is lm.task
