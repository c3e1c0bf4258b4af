"""Evaluate multiple choice: the share of rows whose right choice has the largest logit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.corpus import Corpus
from laconic.evaluate.eval_task import TaskResult, tokenizer_name
from laconic.evaluate.glue import accuracy
from laconic.evaluate.labelled_task import LabelledTask, context_of
from laconic.evaluate.metrics import Metric
from laconic.model import LanguageModel, ModelTask
from laconic.model.predictions import Predictions
from laconic.progress import Track

BATCH = 16
CONTEXT = 512
METRICS: dict[str, Metric] = {"accuracy": accuracy}


def _true_and_predicted(predictions: Predictions, labels: Tensor) -> Tensor:
    return torch.stack((labels, predictions.values.argmax(-1)), dim=1)


@dataclass(frozen=True)
class MultipleChoice(LabelledTask):
    """Accuracy of a model for multiple choice, which scores a text with each of its choices."""

    prefix = "multiple-choice"
    spellings = ("multiple-choice:SOURCE",)
    kinds = (ModelTask.MULTIPLE_CHOICE,)

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model. The columns of the table are the index of the right choice and of the predicted one."""
        context = context_of(lm, CONTEXT)
        table = self.score_rows(lm, corpus, context, BATCH, track, _true_and_predicted)
        settings = {"context": context, "choices": len(corpus.examples[0].choices), "tokenizer": tokenizer_name(lm)}
        return TaskResult(table, METRICS, settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS
