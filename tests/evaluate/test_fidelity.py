"""Fidelity: perfect to itself, and equal to a plain computation for a changed model of every task."""

import math
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.nn import functional

from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Corpus, Example
from laconic.compress.kl_metric import KLMetric
from laconic.errors import UserError
from laconic.evaluate import Reference, ReferenceCache, compare_to_reference
from laconic.evaluate.similarity import neighbour_agreement
from laconic.model import LanguageModel, ModelTask, predict
from laconic.numerics.distributions import CATEGORICAL
from tests.architectures import compress_everything
from tests.evaluate.models import with_tokenizer
from tests.problems import MULTI_LABEL, classifier, moved

WORDS = ("a tale of two cities", "it was", "the best of times, it was the worst", "of times", "wisdom", "the age")
CORPUS = Corpus("dickens", "dev", tuple(Example(word) for word in WORDS * 4))
NAMES = ("bert-classifier", "distilbert-classifier", "bert-base", "bert-masked", "gpt2", "llama", "t5", "bart")


def changed(name: str) -> LanguageModel:
    return compress_everything(with_tokenizer(name), rank=12)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_faithful_to_itself(name: str):
    found = compare_to_reference(with_tokenizer(name), Reference(with_tokenizer(name), CORPUS))
    assert (found.kl, found.kl_low, found.kl_high, found.top1_agreement) == (0, 0, 0, 1)
    assert found.cosine == pytest.approx(1) and found.rows == len(CORPUS.examples)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_changed_model_is_compared_prediction_by_prediction(name: str):
    original, lm = with_tokenizer(name), changed(name)
    # Of rows that are there four times, which is nearest is left to rounding.
    corpus = CORPUS.first(len(WORDS)) if original.task is ModelTask.EMBEDDING else CORPUS
    found = compare_to_reference(lm, Reference(original, corpus))
    [batch] = batches(original, corpus, batch_size=100)
    (p, _, _, distribution, _), hidden = predict(original, batch, hidden=True)
    (q, *_), other = predict(lm, batch, hidden=True)
    if distribution is CATEGORICAL:
        kl = functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean").item()
        agreement = (p.argmax(-1) == q.argmax(-1)).float().mean().item()
        assert found.top1_agreement == pytest.approx(agreement)
    elif original.task is ModelTask.REGRESSION:
        grades = [[round(5 * score) for score in scores.flatten().tolist()] for scores in (p, q)]
        assert found.top1_agreement == sum(a == b for a, b in zip(*grades, strict=True)) / len(p)
        kl = 0.5 * (p - q).square().mean().item()
    else:
        assert found.top1_agreement == neighbour_agreement(p, q)
        kl = 0.5 * (p - q).square().sum(-1).mean().item()
    assert found.kl == pytest.approx(kl, rel=1e-4) and found.kl > 0
    assert found.kl_low <= found.kl <= found.kl_high
    assert found.predictions == len(p)
    assert found.cosine == pytest.approx(torch.cosine_similarity(hidden, other).mean().item(), rel=1e-5)


def test_scores_agree_where_they_round_to_the_same_fifth():
    original, lm = with_tokenizer("distilbert-classifier"), with_tokenizer("distilbert-classifier")
    [batch] = batches(original, CORPUS, batch_size=100)
    with torch.no_grad():
        scores = predict(original, batch)[0].values.flatten().tolist()
        lm.model.get_parameter("classifier.bias").add_(0.1)
    same = [round(5 * score) == round(5 * (score + 0.1)) for score in scores]
    assert 0 < sum(same) < len(same)
    assert compare_to_reference(lm, Reference(original, CORPUS)).top1_agreement == sum(same) / len(same)


def test_independent_labels_are_compared_one_by_one():
    original = classifier(3, problem_type=MULTI_LABEL)
    with torch.no_grad():
        original.model.get_parameter("classifier.weight").zero_()
        original.model.get_parameter("classifier.bias").zero_()
    # Every sigmoid from .50 to .993: a softmax would call both the same.
    found = compare_to_reference(moved(original, (5, 5, 5)), Reference(original, CORPUS))
    by_hand = 3 * (0.5 * math.log(0.5 / 0.9933071) + 0.5 * math.log(0.5 / 0.0066929))
    assert found.kl == pytest.approx(by_hand, rel=1e-5) and found.top1_agreement == 0
    # A row agrees where all of its labels do.
    assert compare_to_reference(moved(original, (-1, 0, 0)), Reference(original, CORPUS)).top1_agreement == 1
    assert compare_to_reference(moved(original, (-1, 0.1, 0)), Reference(original, CORPUS)).top1_agreement == 0


@pytest.mark.parametrize("problem_type", [None, MULTI_LABEL])
def test_the_same_classes_in_another_order_are_the_same(problem_type: str | None):
    original = classifier(3, ("negative", "neutral", "positive"), problem_type)
    lm = classifier(3, ("POS", "NEG", "NEU"), problem_type)
    with torch.no_grad():
        for name in ("classifier.weight", "classifier.bias"):
            lm.model.get_parameter(name).copy_(original.model.get_parameter(name)[[2, 0, 1]])
    found = compare_to_reference(lm, Reference(original, CORPUS))
    assert found.kl == pytest.approx(0, abs=1e-9) and found.top1_agreement == 1
    assert KLMetric(original, batches(original, CORPUS))(lm) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="do not match by name"):
        compare_to_reference(classifier(3, ("a", "b", "c"), problem_type), Reference(original, CORPUS))


def test_several_scores_are_compared_as_one_gaussian():
    original = classifier(2, problem_type="regression")
    found = compare_to_reference(moved(original, (0.3, -0.4)), Reference(original, CORPUS))
    assert found.kl == pytest.approx(0.5 * (0.09 + 0.16), rel=1e-4)


def test_models_of_other_problem_types_are_not_compared():
    with pytest.raises(UserError, match="one is a classification, the other a multi-label model"):
        compare_to_reference(classifier(3), Reference(classifier(3, problem_type=MULTI_LABEL), CORPUS))


def test_what_the_figures_depend_on_is_said():
    found = compare_to_reference(changed("gpt2"), Reference(with_tokenizer("gpt2"), CORPUS, seed=3))
    assert (found.source, found.split, found.context, found.seed) == ("dickens", "dev", 40, 3)
    assert found.tokenizer.endswith("35 tokens")


def test_large_vocabularies_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch):
    original, lm = with_tokenizer("gpt2"), changed("gpt2")
    whole = compare_to_reference(lm, Reference(original, CORPUS))
    # The package has a function of the same name.
    monkeypatch.setattr(import_module("laconic.evaluate.fidelity"), "COMPARED_LOGITS", 150)
    assert compare_to_reference(lm, Reference(original, CORPUS)) == whole
    monkeypatch.setattr(import_module("laconic.evaluate.prediction"), "MAX_LOGITS", 1)
    assert compare_to_reference(lm, Reference(original, CORPUS)).kl == pytest.approx(whole.kl, rel=1e-5)


@pytest.mark.parametrize(("limit", "asked"), [(2**28, 1), (0, 2)])
def test_an_original_is_asked_once_where_there_is_room_for_what_it_says(limit: int, asked: int):
    original, lm = with_tokenizer("gpt2"), changed("gpt2")
    calls: list[int] = []
    original.model.register_forward_hook(lambda *_: calls.append(1))
    reference = Reference(original, CORPUS, limit=limit)
    first, second = compare_to_reference(lm, reference), compare_to_reference(lm, reference)
    assert first == second and len(calls) == asked * len(reference.batches)
    assert first == compare_to_reference(lm, Reference(with_tokenizer("gpt2"), CORPUS))


def test_another_original_or_other_rows_are_another_reference():
    references, original = ReferenceCache(), with_tokenizer("gpt2")
    first = references.get(original, CORPUS)
    assert references.get(original, CORPUS) is first
    assert references.get(original, CORPUS.first(2)) is not first
    assert references.get(with_tokenizer("gpt2"), CORPUS).original is not original


def test_neighbours_agree_where_the_nearest_other_row_is_the_same():
    angles = torch.tensor([0.0, 0.1, 1.0, 1.2])
    moved = torch.tensor([0.0, 0.9, 1.0, 1.2])
    rows, others = (torch.stack((torch.cos(a), torch.sin(a)), dim=1) for a in (angles, moved))
    # The second row is now nearest to the third, and the third to it.
    assert neighbour_agreement(rows, rows) == 1
    assert neighbour_agreement(rows, others) == 0.5


def test_models_that_predict_different_things_are_not_compared():
    with pytest.raises(UserError, match="one is a causal, the other a masked model"):
        compare_to_reference(with_tokenizer("gpt2"), Reference(with_tokenizer("bert-masked"), CORPUS))
    with pytest.raises(UserError, match="one is an embedding, the other a causal model"):
        compare_to_reference(with_tokenizer("bert-base"), Reference(with_tokenizer("gpt2"), CORPUS))
    other = replace(with_tokenizer("bert-classifier"))
    other.model.resize_token_embeddings(60)
    other.model.set_submodule("classifier", torch.nn.Linear(32, 4))
    with pytest.raises(UserError, match="their predictions have the shapes"):
        compare_to_reference(other, Reference(with_tokenizer("bert-classifier"), CORPUS))
