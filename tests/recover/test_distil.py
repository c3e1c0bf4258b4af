"""Distillation layer by layer, students of all kinds, and recipes with both."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from laconic.cli.main import status
from laconic.compress import Shorten
from laconic.errors import UserError
from laconic.model import Predictions, load, predict
from laconic.numerics.distributions import BERNOULLI, GAUSSIAN
from laconic.recipe import recipe_from, run
from laconic.recover import Distil, Finetune, Match, Student
from laconic.recover.distillation_loss import DistillationLoss, Terms, task_loss
from laconic.recover.layer_matching import uniform_layers
from laconic.recover.observe import Feature, eager, observe
from laconic.recover.rows import LengthGroupedSampler
from tests.architectures import BY_NAME
from tests.problems import MULTI_LABEL, classifier, moved
from tests.recover.ground import data_for, lm_of, with_original
from tests.recover.test_training import SHORT, kl

OPEN = ("bert-classifier", "distilbert-masked", "albert-masked", "gpt2", "llama", "gpt-neox", "t5", "bart")
"""Models that show all features."""
ALL = frozenset(Feature)


@pytest.mark.parametrize("name", OPEN)
def test_what_a_model_shows_has_a_layer_for_each_block(name: str) -> None:
    lm = lm_of(name)
    (batch, *_) = data_for(lm).batches
    with eager(lm), torch.no_grad():
        predictions, stacks = observe(lm, batch, ALL)
    assert len(stacks) == (2 if lm.model.config.is_encoder_decoder else 1)
    blocks = lm.model.config.num_hidden_layers
    for shown in stacks:
        assert len(shown.hidden) == len(shown.attention) + 1 == len(shown.values) + 1 == 1 + blocks
        rows, tokens = shown.mask.shape
        assert shown.attention[0].shape[0] == rows and shown.attention[0].shape[-1] == tokens
        assert all(values.shape[:2] == (rows, tokens) for values in shown.values)
        torch.testing.assert_close(shown.attention[0].sum(-1), torch.ones(shown.attention[0].shape[:-1]))
    assert torch.isfinite(predictions.values).all()


def test_values_of_fused_projections_are_the_values() -> None:
    # Rows of the fused matrix say what is what: the values are made zero, and nothing else is.
    for name, path in (
        ("gpt2", "transformer.h.0.attn.c_attn"),
        ("gpt-neox", "gpt_neox.layers.0.attention.query_key_value"),
    ):
        lm = lm_of(name)
        fused = lm.model.get_submodule(path)
        with torch.no_grad():
            weight = fused.weight.T if name == "gpt2" else fused.weight
            size, width = 8, len(fused.bias) // 3
            rows = (
                range(2 * width, 3 * width)
                if name == "gpt2"
                else [head * 3 * size + 2 * size + at for head in range(width // size) for at in range(size)]
            )
            weight[list(rows)] = 0
            fused.bias[list(rows)] = 0
            _, (shown,) = observe(lm, data_for(lm).batches[0], frozenset({Feature.VALUES}))
        assert not shown.values[0].any()
        assert shown.values[1].any()


def test_layers_are_spread_evenly() -> None:
    assert uniform_layers(6, 3) == [(2, 1), (4, 2), (6, 3)]
    assert uniform_layers(12, 5) == [(2, 1), (5, 2), (7, 3), (10, 4), (12, 5)]


@pytest.mark.parametrize("name", OPEN)
def test_every_term_is_nothing_for_the_teacher_itself(name: str) -> None:
    lm = with_original(lm_of(name))
    assert lm.original is not None
    data = data_for(lm)
    step = Distil(hidden=1.0, attention=1.0, values=1.0, heads=4)
    batch = {"student": data.batches[0], "teacher": data.batches[0]}
    with eager(lm, lm.original):
        terms = step.loss_terms(lm, lm.original, batch)
        lesson = DistillationLoss(lm, lm.original, terms).eval()
        lesson.prepare(batch, 0)
        losses = lesson(**batch)
    blocks, stacks = lm.model.config.num_hidden_layers, 2 if lm.model.config.is_encoder_decoder else 1
    assert len(terms.matches) == (blocks + 1 + blocks + 1) * stacks
    assert losses["loss"].item() == pytest.approx(0, abs=1e-5)


MATCHES = (
    Match(teacher=2, student=1),
    Match(teacher=2, student=1, loss="cosine"),
    Match(teacher=(0, 2), student=(0, 1), loss="gram", weight=2.0),
    Match(teacher=2, student=1, feature=Feature.ATTENTION),
    Match(teacher=2, student=1, feature=Feature.ATTENTION, loss="cross-entropy"),
    Match(teacher=2, student=1, feature=Feature.VALUES, heads=2),
)


@pytest.mark.parametrize(
    ("match", "narrow"),
    # A student as wide as its teacher has no projection, which is one case of each feature.
    [*((match, True) for match in MATCHES), *((match, False) for match in (MATCHES[0], MATCHES[3], MATCHES[5]))],
    ids=lambda value: f"{value.feature}-{value.loss_name}" if isinstance(value, Match) else str(value),
)
@pytest.mark.slow
def test_a_narrower_student_comes_near_in_what_is_matched(match: Match, narrow: bool) -> None:
    lm = with_original(lm_of("bert-classifier"))
    config = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2} if narrow else {}
    small = Student(blocks=(1,), weights="random", config=config).apply(lm, None).now
    assert small is not None
    data = data_for(small)
    lines = Distil(**SHORT, logits=0.0, matches=(match,)).apply(small, data).found["distil"]["lines"]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert min(losses) < losses[0]
    # Projections of widths are of the lesson, and not of what is saved.
    assert not any("projection" in name for name, _ in small.model.named_parameters())


def test_weights_go_as_they_are_told() -> None:
    terms = Terms(task=2.0, logits=3.0, schedules={"task": "grow", "logits": "fade"})
    assert [terms.weight("task", done) for done in (0.0, 0.5, 1.0)] == [0.0, 1.0, 2.0]
    assert [terms.weight("logits", done) for done in (0.0, 0.5, 1.0)] == [3.0, 1.5, 0.0]
    assert terms.weight("matches", 0.3) == 1.0
    # Held-out losses are compared over time.
    assert terms.weight("task", None) == 2.0


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    lm = with_original(lm_of("bert-classifier"))
    assert lm.original is not None
    Shorten(drop=1, select="first").apply(lm, None)
    data = data_for(lm)
    batch = {"student": data.batches[0], "teacher": data.batches[0]}
    terms = Terms(task=0.5, logits=2.0, temperature=3.0, matches=(Match(teacher=2, student=1, weight=0.25),))
    losses = DistillationLoss(lm, lm.original, terms).eval()(**batch)
    ours, theirs = (observe(model, data.batches[0])[0] for model in (lm, lm.original))
    log_p, log_q = (seen.values.div(3).log_softmax(-1) for seen in (theirs, ours))
    divergence = 9 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert losses["logits"].item() == pytest.approx(divergence.item(), rel=1e-5)
    assert losses["task"].item() == pytest.approx(task_loss(ours).item(), rel=1e-6)
    total = 0.5 * losses["task"] + 2 * losses["logits"] + losses["matches"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_the_losses_of_independent_labels_and_of_several_scores() -> None:
    z, t = torch.tensor([[0.0, 2.0, -1.0], [1.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    rows = torch.arange(2)
    by_hand = -(t * z.sigmoid().log() + (1 - t) * (-z).sigmoid().log()).sum(-1).mean()
    assert task_loss(Predictions(z, rows, t, BERNOULLI)).item() == pytest.approx(by_hand.item(), rel=1e-6)
    squares = (z - t).square().sum(-1).mean()
    assert task_loss(Predictions(z, rows, t, GAUSSIAN)).item() == pytest.approx(squares.item(), rel=1e-6)


@pytest.mark.parametrize("asked", [False, True])
def test_a_student_of_independent_labels_is_taught_each(asked: bool) -> None:
    teacher = classifier(3, problem_type=MULTI_LABEL)
    # Which a softmax would take for the same.
    lm = replace(moved(teacher, (2, 2, 2)), original=teacher)
    data = data_for(lm)
    batch = {"student": data.batches[0], "teacher": data.batches[0]}
    if asked:
        batch["soft_targets"] = predict(teacher, data.batches[0])[0].values.detach()
    terms = Terms(logits=1.0, temperature=2.0)
    loss = DistillationLoss(lm, teacher, terms).eval()(**batch)["logits"]
    p, q = ((predict(model, data.batches[0])[0].values / 2).sigmoid() for model in (teacher, lm))
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4) and loss.item() > 0.1
    far = kl(lm, teacher, data)
    Distil(**SHORT).apply(lm, data)
    assert kl(lm, teacher, data) < 0.2 * far


def test_a_teacher_of_another_problem_type_is_refused() -> None:
    lm = classifier(3)
    lm = replace(lm, original=classifier(3, problem_type=MULTI_LABEL))
    with pytest.raises(UserError, match="teacher predicts which of 3 labels hold, and the student one of 3 classes"):
        Distil(**SHORT).apply(lm, data_for(lm))


@pytest.mark.parametrize("name", ["bert-classifier", "bert-base", "llama", "bart"])
def test_a_teacher_that_is_asked_once_says_the_same(name: str) -> None:
    lm = with_original(lm_of(name))
    Shorten(drop=1, select="last").apply(lm, None) if name != "bart" else None
    several = Distil(**{**SHORT, "epochs": 2.0})
    data = data_for(lm)
    material = several._with_predictions(several._training_data(lm, several.load_teacher(lm), data), data)
    assert material.train.soft_targets is not None
    fresh = replace(material.train, soft_targets=None)
    for numbers in (range(4), range(4, 7)):
        batch = material.train.batch(numbers, lm, lm.original)
        asked = fresh.batch(numbers, lm, lm.original)
        lesson = DistillationLoss(lm, lm.original, Terms(logits=1.0)).eval()
        assert lesson(**batch)["loss"].item() == pytest.approx(lesson(**asked)["loss"].item(), rel=1e-4, abs=1e-7)


def test_without_dropout_a_student_is_trained_as_it_is_used() -> None:
    lm = with_original(lm_of("bert-classifier"))
    material = Distil(**SHORT)._training_data(lm, lm.original, data_for(lm))
    batch = material.train.batch(range(4), lm, lm.original)
    losses = {
        dropout: DistillationLoss(lm, lm.original, Terms(logits=1.0), dropout).train()(**batch)["loss"].item()
        for dropout in (False, True)
    }
    assert losses[False] == pytest.approx(0, abs=1e-9) and losses[True] > 1e-6
    assert (Distil().dropout, Finetune().dropout) == (False, True)


def test_batches_are_of_one_length_and_every_row_comes_once() -> None:
    lengths = [at * 7 % 50 for at in range(203)]
    order = LengthGroupedSampler(lengths, 8, seed=0)
    first = list(order)
    assert sorted(first[:203]) == list(range(203))
    assert len(first) == len(order) == 208 and first[203:] == first[:5], "no batch is short"
    spans = [max(block) - min(block) for at in range(0, 200, 8) if (block := [lengths[n] for n in first[at : at + 8]])]
    assert sum(spans) / len(spans) < 6
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first


def test_another_architecture_learns_of_its_teacher(tiny_model: Path, texts: Path, tmp_path: Path) -> None:
    config = BY_NAME["distilbert-classifier"].model().config
    config.num_labels = 3
    config.architectures = ["DistilBertForSequenceClassification"]
    config.save_pretrained(tmp_path / "student")
    recipe = {
        "model": str(tiny_model), "data": str(texts), "samples": 4,
        "steps": [{"student": {"model": str(tmp_path / "student")}}, {"distil": {**SHORT, "held_out": 1}}],
    }  # fmt: skip
    (tmp_path / "texts.txt").write_text(texts.read_text() * 4)
    record = run(recipe_from({**recipe, "data": str(tmp_path / "texts.txt")}), tmp_path / "out")
    assert load(str(tmp_path / "out")).model.config.model_type == "distilbert"
    assert record.changes.found[1]["distil"]["rows"] > 0
    assert (tmp_path / "out" / "distil" / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Distil(matches=(Match(teacher=9, student=1),)), "layer of the teacher"),
        (Distil(matches=(Match(teacher=1, student=1, feature=Feature.VALUES, heads=5),)), "a divisor of"),
    ],
)
def test_what_does_not_fit_is_named(step, sentence: str) -> None:
    lm = with_original(lm_of("bert-classifier"))
    with pytest.raises(UserError, match=sentence):
        step.apply(lm, data_for(lm))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Match(teacher=1, student=1, loss="gram"), "two layers for the loss gram"),
        (lambda: Match(teacher=1, student=1, feature=Feature.ATTENTION, loss="cosine"), "one of mse, cross-entropy"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_said(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_a_recipe_from_the_command_line(tiny_model: Path, texts: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "texts.txt").write_text(texts.read_text() * 4)
    recipe = {
        "model": str(tiny_model), "data": str(tmp_path / "texts.txt"), "samples": 4,
        "steps": [
            {"narrow": {"heads": 0.5}},
            {"distil": {**SHORT, "hidden": 0.1, "matches": [{"teacher": [0, 2], "student": [0, 2], "loss": "gram"}]}},
            {"compress": {"method": "rtn:bits=8"}},
        ],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert status(["run", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [set(found) for found in said["found"]] == [set(), {"distil"}, set()]
    again = run(recipe_from(yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    assert again.key == said["key"]


def test_kl_is_what_is_lowered() -> None:
    lm = with_original(lm_of("bert-classifier"))
    assert lm.original is not None
    Shorten(drop=1, select="first").apply(lm, None)
    data = data_for(lm)
    far = kl(lm, lm.original, data)
    Distil(**SHORT).apply(lm, data)
    assert kl(lm, lm.original, data) < 0.7 * far
