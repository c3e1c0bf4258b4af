"""Evaluate multi-label classification: F1 over all labels together, and the mean of the F1 of each label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.calibrate.classes import class_names
from laconic.calibrate.corpus import Corpus
from laconic.evaluate.eval_task import TaskResult, tokenizer_name
from laconic.evaluate.labelled_task import LabelledTask, context_of
from laconic.evaluate.metrics import Metric, Scores, Share
from laconic.model import LanguageModel, ModelTask
from laconic.model.predictions import Predictions
from laconic.progress import Track

BATCH = 32
CONTEXT = 512


def f1_micro(table: Scores) -> float:
    """F1 of all labels of all rows together.

    Args:
        table: for each row the true labels, 0 or 1 each, then the predicted ones.

    Example:
        >>> f1_micro(np.array([[1, 0, 1, 0], [1, 1, 1, 0]]))
        0.8
    """
    both, either = _counts(table)
    return float(2 * both.sum() / max(either.sum(), 1))


def f1_macro(table: Scores) -> float:
    """The mean over labels of the F1 of a label; that of a label which is neither true nor predicted anywhere is 0.

    Args:
        table: for each row the true labels, 0 or 1 each, then the predicted ones.

    Example:
        >>> f1_macro(np.array([[1, 0, 1, 0], [1, 1, 1, 0]]))
        0.5
    """
    both, either = _counts(table)
    return float(np.mean(2 * both / np.maximum(either, 1)))


def _counts(table: Scores) -> tuple[np.ndarray, np.ndarray]:
    """For each label, the true positives, and the sum of true and predicted positives."""
    true, predicted = np.split(table == 1, 2, axis=1)
    return np.sum(true & predicted, axis=0), np.sum(true, axis=0) + np.sum(predicted, axis=0)


def _all_right(table: Scores) -> np.ndarray:
    true, predicted = np.split(table, 2, axis=1)
    return (true == predicted).all(axis=1)


METRICS: dict[str, Metric] = {"f1_micro": f1_micro, "f1_macro": f1_macro, "accuracy": Share(_all_right)}
"""The accuracy is the share of rows whose labels are all right."""


def _true_and_predicted(predictions: Predictions, labels: Tensor) -> Tensor:
    return torch.cat((labels, predictions.values > 0), dim=1)


@dataclass(frozen=True)
class MultiLabel(LabelledTask):
    """Texts to which several labels may apply; a label is predicted if its probability is above one half."""

    prefix = "multi-label"
    spellings = ("multi-label:SOURCE",)
    kinds = (ModelTask.MULTI_LABEL,)

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model. The columns of the table are the true labels, 0 or 1 each, then the predicted labels."""
        context = context_of(lm, CONTEXT)
        table = self.score_rows(lm, corpus, context, BATCH, track, _true_and_predicted)
        settings = {"context": context, "classes": list(class_names(lm)), "tokenizer": tokenizer_name(lm)}
        return TaskResult(table, METRICS, settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS
