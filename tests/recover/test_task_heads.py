"""Training of classifiers of tokens, of models that find answers, and of models that choose; new heads for them."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from laconic.calibrate import Calibration
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import Answer, Corpus, Example, sample
from laconic.compress import Compress
from laconic.errors import UserError
from laconic.methods import KfacSvd
from laconic.model import LanguageModel, ModelTask, predict
from laconic.progress import silent
from laconic.recover import Distil, Finetune, Student
from laconic.recover.distillation_loss import DistillationLoss, Terms
from laconic.recover.rows import precompute_predictions, tokenize_corpus
from laconic.recover.training import Training
from tests.architectures import BY_NAME, batch_for
from tests.recover.ground import SHORT, WORDS, with_original
from tests.task_models import ANSWER, CHOICE, TASK_MODELS, TASKS, TOKENS
from tests.tokens import letters


def example(task: ModelTask, at: int) -> Example:
    text = f"{WORDS[at % 8]} {WORDS[at * 3 % 7]}"
    words = tuple(text.split())
    if task is TOKENS:
        return Example(text, words=words, label=tuple(float(len(word) % 3) for word in words))
    if task is CHOICE:
        return Example(text, choices=(text[:4], WORDS[at % 5], WORDS[at % 3]), label=float(at % 3))
    return Example(WORDS[at * 5 % 8], text, answers=(Answer(words[-1], text.rindex(words[-1])),))


def ground(task: ModelTask) -> tuple[LanguageModel, Calibration]:
    """A tiny model, and 40 rows of its task."""
    lm = replace(TASK_MODELS[f"bert-{task.value}"].lm(), tokenizer=letters())
    whole = Corpus("words", "train", tuple(example(task, at) for at in range(40)))
    # Some texts are longer than the rows, so that an answer may be in another window.
    some = batches(lm, sample(whole, 8, 0), batch_size=4, max_length=24, labelled=True)
    return lm, Calibration(some, corpus=whole, max_length=24)


def trained(step: Training, lm: LanguageModel, data: Calibration) -> list[float]:
    """The held-out losses, from before the training to its end."""
    step.check(lm)
    step.check_data(data)
    assert data.corpus is not None
    step.check_labels(lm, data.corpus, 0)
    lines = step.apply(lm, data).found[step.name]["lines"]
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


@pytest.mark.parametrize("task", TASKS)
def test_a_compressed_model_is_finetuned_on_its_task(task: ModelTask) -> None:
    lm, data = ground(task)
    Compress(method=KfacSvd(), keep=0.5).apply(lm, data)
    losses = trained(Finetune(**SHORT), lm, data)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("task", TASKS)
def test_a_compressed_model_is_distilled_from_its_original(task: ModelTask) -> None:
    lm, data = ground(task)
    lm = with_original(lm)
    assert lm.original is not None
    Compress(method=KfacSvd(), keep=0.3).apply(lm, data)
    losses = trained(Distil(**{**SHORT, "learning_rate": 3e-4}, task=0.1, hidden=0.1), lm, data)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("task", TASKS)
def test_precomputed_predictions_are_those_that_the_teacher_would_make(task: ModelTask) -> None:
    """Whatever rows are in a batch: the logits of an answer are as many as its tokens."""
    lm, data = ground(task)
    teacher = replace(TASK_MODELS[f"bert-{task.value}"].lm(seed=1), tokenizer=letters())
    assert data.corpus is not None
    rows = tokenize_corpus(data.corpus, data, lm, teacher, labelled=True)
    told = precompute_predictions(teacher, rows, 8, silent)
    assert told.soft_targets is not None
    assert len({row.shape[-1] for row in told.soft_targets}) == (4 if task is ANSWER else 1)
    loss = DistillationLoss(lm, teacher, Terms(task=0.0, logits=1.0)).eval()
    longest = sorted(range(len(rows)), key=lambda at: len(rows.student[at].input_ids))
    with torch.no_grad():
        for numbers in ((3, 8, 1, 12), longest[:3], (longest[0], longest[-1])):
            once = loss(**told.batch(numbers, lm, teacher))["loss"]
            again = loss(**rows.batch(numbers, lm, teacher))["loss"]
            assert once.isfinite() and once > 0
            torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TASK_MODELS)
def test_a_new_head_on_the_same_encoder(name: str) -> None:
    expected = TASK_MODELS[name].model()
    task = ModelTask(next(task.value for task in TASKS if name.endswith(task.value)))
    base = next(each for each in BY_NAME.values() if each.build().config.model_type == expected.config.model_type)
    lm = base.lm()
    step = Student(head=task.value, classes=None if task in (ANSWER, CHOICE) else ("O", "B-X", "I-X"))
    step.check(lm)
    now = step.apply(lm, None).now
    assert now is not None and type(now.model) is type(expected) and now.task is task
    if task is TOKENS:
        assert now.model.config.id2label == {0: "O", 1: "B-X", 2: "I-X"}
    with torch.no_grad():
        predictions, _ = predict(now, batch_for(now.model))
    assert predictions.possible_values.isfinite().all()
    theirs, ours = lm.model.base_model.state_dict(), now.model.base_model.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items() if key in theirs)
    # T5's class for answers has no base model apart.
    assert {key for key in ours if key not in theirs and not key.startswith(("pooler.", "qa_outputs."))} == set()


def test_a_classifier_of_tokens_gets_a_head_for_other_tokens() -> None:
    now = Student(classes=5).apply(TASK_MODELS[f"bert-{TOKENS.value}"].lm(), None).now
    assert now is not None and now.task is TOKENS and now.model.config.num_labels == 5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"head": "question-answering", "classes": 2}, "classes must be left out with the head question-answering"),
        ({"head": "token-classification"}, "classes must be given with the head token-classification"),
        (
            {"head": "token-classification", "classes": 3, "problem_type": "regression"},
            "problem_type must be left out with the head token-classification; got 'regression'",
        ),
        ({"head": "multiple-choice", "model": "x"}, "model must be left out with blocks, config, classes or head"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Student(**parameters)


def test_an_architecture_without_such_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="Models of the type 'gpt2' have no class that chooses one of several texts"):
        Student(head="multiple-choice").check(BY_NAME["gpt2"].lm())
