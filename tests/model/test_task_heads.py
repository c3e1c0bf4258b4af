"""Classifiers of tokens, models that find answers, and models that choose: their tasks and their predictions."""

from typing import Any

import pytest
import torch
from transformers import BertForNextSentencePrediction, PreTrainedModel

from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, Predictions, divergence, predict
from laconic.model.predictions import ModelRunError
from laconic.model.task import AUTO_CLASSES, find_auto_class, infer_task
from tests.architectures import BY_NAME, batch_for
from tests.task_models import ANSWER, CHOICE, TASK_MODELS, TOKENS

EVERY = pytest.mark.parametrize("name", TASK_MODELS)


def predictions_of(model: PreTrainedModel, batch: Batch) -> tuple[Predictions, torch.Tensor]:
    with torch.no_grad():
        return predict(LanguageModel.of(model), batch, hidden=True)


@EVERY
def test_every_head_has_its_task_and_its_predictions(name: str) -> None:
    model = TASK_MODELS[name].model()
    task = infer_task(model)
    assert name.endswith(task.value)
    assert find_auto_class(model.config, [type(model).__name__]) is AUTO_CLASSES[task][0]
    batch = batch_for(model)
    predictions, states = predictions_of(model, batch)
    with torch.no_grad():
        output = model(**batch)
    mask = batch["attention_mask"].bool()
    if task is TOKENS:
        torch.testing.assert_close(predictions.values, output.logits[mask])
        assert predictions.rows.tolist() == [0] * 7 + [1] * 5
    elif task is CHOICE:
        torch.testing.assert_close(predictions.values, output.logits)
        assert predictions.rows.tolist() == [0, 1]
    else:
        for number, logits in enumerate((output.start_logits, output.end_logits)):
            torch.testing.assert_close(predictions.values[number::2], logits.masked_fill(~mask, -torch.inf))
        assert predictions.rows.tolist() == [0, 0, 1, 1]
    assert predictions.possible_values.isfinite().all()
    assert len(states) == 2 and states.isfinite().all()
    assert (divergence(predictions, predictions) == 0).all()


def test_labels_say_which_tokens_are_predicted() -> None:
    model = TASK_MODELS[f"bert-{TOKENS.value}"].model()
    batch = batch_for(model)
    labels = torch.tensor([[-100, 2, -100, 0, 1, -100, -100], [-100, 1, -100, -100, -100, -100, -100]])
    every, some = predictions_of(model, batch)[0], predictions_of(model, {**batch, "labels": labels})[0]
    assert every.labels is None and some.labels is not None
    assert some.labels.tolist() == [2, 0, 1, 1] and some.rows.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(some.values, every.values[[1, 3, 4, 8]])
    expected = model(**batch, labels=labels).loss
    torch.testing.assert_close(some.distribution.loss(some.values, some.labels).mean(), expected)


def test_an_answer_lies_in_its_context() -> None:
    model = TASK_MODELS[f"bert-{ANSWER.value}"].model()
    batch = batch_for(model)
    context = torch.tensor([[1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 0, 0]]).bool()
    ends = {"start_positions": torch.tensor([3, 0]), "end_positions": torch.tensor([5, 0])}
    predictions, _ = predictions_of(model, {**batch, **ends, "context_mask": context})
    assert predictions.labels is not None and predictions.labels.tolist() == [3, 5, 0, 0]
    assert torch.equal(predictions.values.isfinite(), context.repeat_interleave(2, 0))
    # Without a mask, it is the loss of transformers, which takes the mean of both ends over all tokens.
    batch = {name: tensor[:1] for name, tensor in batch.items()}
    ends = {name: tensor[:1] for name, tensor in ends.items()}
    whole, _ = predictions_of(model, {**batch, **ends})
    assert whole.labels is not None
    torch.testing.assert_close(whole.distribution.loss(whole.values, whole.labels).mean(), model(**batch, **ends).loss)


def test_longformer_attends_from_all_of_the_question() -> None:
    model: Any = TASK_MODELS[f"longformer-{ANSWER.value}"].model()
    # One separator ends the question, and two more follow, as its class requires.
    ids = torch.tensor([[0, 9, 8, 7, 2, 2, 5, 6, 2], [0, 9, 2, 2, 5, 6, 7, 8, 2]])
    model.config.sep_token_id = 2
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**batch)
    found, _ = predictions_of(model, batch)
    torch.testing.assert_close(found.values[0::2], expected.start_logits)
    torch.testing.assert_close(found.values[1::2], expected.end_logits)


def test_choices_of_a_row_share_a_distribution_and_one_mean_state() -> None:
    model = TASK_MODELS[f"bert-{CHOICE.value}"].model()
    batch, labels = batch_for(model), torch.tensor([2, 0])
    predictions, states = predictions_of(model, {**batch, "labels": labels})
    assert predictions.labels is labels
    expected = model(**batch, labels=labels).loss
    torch.testing.assert_close(predictions.distribution.loss(predictions.values, labels).mean(), expected)
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states[-1].reshape(2, 21, -1)
    torch.testing.assert_close(states[1], hidden[1][batch["attention_mask"][1].flatten().bool()].mean(0))


def test_a_batch_of_choices_that_cannot_run_is_one_sentence() -> None:
    model = TASK_MODELS[f"bert-{CHOICE.value}"].model()
    with pytest.raises(ModelRunError, match=r"cannot read 2 rows of 3 choices of 7 tokens: index out of range"):
        predictions_of(model, {**batch_for(model), "input_ids": torch.full((2, 3, 7), 10**6)})


def test_a_class_that_is_not_supported_names_those_that_are() -> None:
    config: Any = BY_NAME["bert-base"].build().config
    model = BertForNextSentencePrediction(config)
    listed = r"token classification, question answering and multiple choice"
    with pytest.raises(
        UserError, match=f"class BertForNextSentencePrediction is not supported; supported are.*{listed}"
    ):
        infer_task(model)
    with pytest.raises(UserError, match=f"'BertForNextSentencePrediction', which is not supported; .*{listed}"):
        find_auto_class(model.config, ["BertForNextSentencePrediction"])
