"""Evaluate multiple choice: the share of rows whose right choice has the largest logit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.batching import tokenize_corpus
from laconic.calibrate.corpus import Corpus
from laconic.evaluate.eval_task import TaskResult, stack_scores, tokenizer_name
from laconic.evaluate.glue import accuracy
from laconic.evaluate.labelled_task import LabelledTask, context_of
from laconic.evaluate.metrics import Metric
from laconic.evaluate.prediction import batch_by_length, predict_batches, restore_order
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

BATCH = 16
CONTEXT = 512
METRICS: dict[str, Metric] = {"accuracy": accuracy}


@dataclass(frozen=True)
class MultipleChoice(LabelledTask):
    """Accuracy of a model for multiple choice, which scores a text with each of its choices."""

    prefix = "multiple-choice"
    spellings = ("multiple-choice:SOURCE",)
    kinds = (ModelTask.MULTIPLE_CHOICE,)

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model. The columns of the table are the index of the right choice and of the predicted one."""
        self.check_model(lm)
        context = context_of(lm, CONTEXT)
        rows = tokenize_corpus(lm, corpus, max_length=context, labelled=True)
        parts, data = batch_by_length(lm, rows, BATCH)
        lines: list[Tensor] = []
        for _, predictions in predict_batches(lm, data, track, self.name):
            assert predictions.labels is not None, "the rows are labelled"
            lines.append(torch.stack((predictions.labels, predictions.values.argmax(-1)), dim=1).double())
        table = stack_scores(lines, self.name, corpus)
        settings = {"context": context, "choices": len(corpus.examples[0].choices), "tokenizer": tokenizer_name(lm)}
        return TaskResult(restore_order(torch.from_numpy(table), parts).numpy(), METRICS, settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS
