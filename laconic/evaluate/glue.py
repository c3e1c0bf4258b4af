"""GLUE: the official metrics of its nine tasks (Wang et al. 2019, table 1, https://arxiv.org/abs/1804.07461).

STS-B scores embedding models too, by the similarity of the embeddings of two texts (`laconic.evaluate.similarity`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from laconic.calibrate.batching import tokenize_corpus
from laconic.calibrate.classes import class_mismatch, class_names, match_classes, quote_model
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.labels import convert_labels
from laconic.calibrate.sources import TASKS, GlueTask, glue_task
from laconic.errors import UserError, unknown
from laconic.evaluate.eval_task import EvalTask, TaskResult, tokenizer_name, with_article
from laconic.evaluate.metrics import Metric, Scores, Share
from laconic.evaluate.prediction import batch_by_length, predict_batches, restore_order
from laconic.evaluate.similarity import similarities
from laconic.model import LanguageModel, ModelTask
from laconic.model.tokens import check_decoder_start
from laconic.progress import Track

BATCH = 32
CONTEXT = 128
"""The largest input length in tokens, as in the published GLUE results."""


accuracy = Share(lambda table: table[:, 0] == table[:, 1])
"""The share of rows (truth, prediction) in which both are equal."""


def f1(table: Scores) -> float:
    """F1 of class 1.

    Args:
        table: the true class and the predicted class of each row.

    Returns:
        A number from 0 to 1; 0 where class 1 is neither true nor predicted anywhere.

    Example:
        >>> f1(np.array([[1, 1], [1, 0], [0, 0], [1, 1]]))
        0.8
    """
    true, predicted = (table[:, :2] == 1).T
    # scikit-learn checks its inputs, which is too slow for thousands of resampled tables.
    return float(2 * np.sum(true & predicted) / max(np.sum(true) + np.sum(predicted), 1))


def matthews(table: Scores) -> float:
    """Matthews correlation of two classes: the Pearson correlation of the two columns.

    Args:
        table: the true class and the predicted class of each row.

    Returns:
        A number from -1 to 1; 0 where a column is constant.

    Reference:
        Matthews, Biochimica et Biophysica Acta 405, 1975, pages 442-451.

    Example:
        >>> round(matthews(np.array([[1, 1], [1, 1], [0, 0], [0, 1]])), 3)
        0.577
    """
    truth, predicted = (table - table.mean(axis=0))[:, :2].T
    spread = float(np.sqrt(truth @ truth) * np.sqrt(predicted @ predicted))
    return 0.0 if spread == 0 else float(truth @ predicted) / spread


def pearson(table: Scores) -> float:
    """Pearson correlation; 0 where a column is constant.

    Args:
        table: the true and the predicted score of each row.

    Example:
        >>> round(pearson(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])), 6)
        1.0
    """
    return _correlation(table, pearsonr)


def spearman(table: Scores) -> float:
    """Spearman rank correlation; 0 where a column is constant.

    Args:
        table: the true and the predicted score of each row.

    Example:
        >>> round(spearman(np.array([[1.0, 2.0], [2.0, 30.0], [3.0, 400.0]])), 6)
        1.0
    """
    return _correlation(table, spearmanr)


def _correlation(table: Scores, coefficient: Callable[..., Any]) -> float:
    truth, prediction = table.T
    # The correlation is undefined for a constant column.
    if len(table) < 2 or np.ptp(truth) == 0 or np.ptp(prediction) <= 1e-12 * np.abs(prediction).max():
        return 0.0
    return float(coefficient(truth, prediction)[0])


METRICS: dict[str, dict[str, Metric]] = {
    "cola": {"matthews": matthews},
    "mrpc": {"f1": f1, "accuracy": accuracy},
    "qqp": {"f1": f1, "accuracy": accuracy},
    "stsb": {"pearson": pearson, "spearman": spearman},
}
"""The metrics of each task; the metric of all other tasks is accuracy."""


@dataclass(frozen=True)
class Glue(EvalTask):
    """The dev split of one GLUE task.

    Args:
        task: the task; its classes are matched with those of the model by name.
    """

    prefix = "glue"
    spellings = tuple(f"glue/{task.name}" for task in TASKS)
    kinds = (ModelTask.CLASSIFICATION, ModelTask.REGRESSION)

    task: GlueTask

    @classmethod
    def from_name(cls, name: str) -> "Glue":
        """The task `glue/TASK`, in upper or lower case, with GLUE's hyphens or without."""
        _, slash, task = name.partition("/")
        if not slash:
            raise unknown("task", name, cls.spellings)
        return cls(glue_task(task.rstrip("/")))

    @property
    def source(self) -> str:
        return f"glue/{self.task.name}"

    def check_model(self, lm: LanguageModel) -> None:
        if self._scores_similarity(lm):
            check_decoder_start(lm)
            return
        super().check_model(lm)
        outputs, needed = lm.model.config.num_labels, max(1, len(self.task.classes))
        if outputs != needed:
            raise UserError(
                f"The task '{self.source}' needs a model with num_labels {needed}; {quote_model(lm)} has {outputs}; "
                "name another task, or a model that was trained for this one."
            )
        kind = ModelTask.CLASSIFICATION if self.task.classes else ModelTask.REGRESSION
        if lm.task is not kind:
            raise UserError(
                f"The task '{self.source}' needs {with_article(kind.value)} model; {quote_model(lm)} is "
                f"{with_article(lm.task.value)} model, by the problem_type in its config.json."
            )
        self._class_numbers(lm)

    def check_corpus(self, lm: LanguageModel, corpus: Corpus) -> None:
        convert_labels(lm, self._with_classes(corpus))
        super().check_corpus(lm, corpus)

    def _with_classes(self, corpus: Corpus) -> Corpus:
        return replace(corpus, classes=self.task.classes)

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model.

        The table has two columns: the true label, and the predicted class or score. Classes have GLUE's indices. The
        score of an embedding model is the similarity of the embeddings of the two texts.
        """
        self.check_model(lm)
        if self._scores_similarity(lm):
            return self._evaluate_similarity(lm, corpus, track)
        classes = torch.tensor(self._class_numbers(lm))
        rows = tokenize_corpus(lm, self._with_classes(corpus), max_length=CONTEXT, labelled=True)
        parts, data = batch_by_length(lm, rows, BATCH)
        lines: list[torch.Tensor] = []
        for _, (values, _, labels, *_) in predict_batches(lm, data, track, self.source):
            assert labels is not None, "the rows are labelled"
            # Convert the model's class indices to GLUE's, as F1 is defined for class 1 of GLUE.
            true, predicted = (
                (classes[labels], classes[values.argmax(-1)]) if self.task.classes else (labels, values[:, 0])
            )
            lines.append(torch.stack((true.double(), predicted.double()), dim=1))
        settings: dict[str, Any] = {"context": CONTEXT, "tokenizer": tokenizer_name(lm)}
        if self.task.classes:
            # The name of the class that each output of the model was matched with.
            settings["classes"] = [self.task.classes[number] for number in classes]
        table = restore_order(torch.cat(lines), parts).numpy()
        return TaskResult(table, self.metrics(settings), settings)

    def _scores_similarity(self, lm: LanguageModel) -> bool:
        """Whether the score of a row is the similarity of its two texts."""
        return lm.task is ModelTask.EMBEDDING and not self.task.classes

    def _evaluate_similarity(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        labels = torch.tensor(convert_labels(lm, corpus), dtype=torch.float64)
        scores = similarities(lm, corpus, track, self.source, max_length=CONTEXT)
        settings = {
            "context": CONTEXT,
            "tokenizer": tokenizer_name(lm),
            "similarity": lm.embedding_pipeline.settings.similarity,
            "vectors": lm.embedding_pipeline.describe(),
        }
        return TaskResult(torch.stack((labels, scores), dim=1).numpy(), self.metrics(settings), settings)

    def _class_numbers(self, lm: LanguageModel) -> list[int]:
        """The index in GLUE of each class of the model.

        Raises:
            UserError: the names of the classes do not match.
        """
        numbers = match_classes(class_names(lm), self.task.classes) if self.task.classes else []
        if None in numbers:
            raise class_mismatch(lm, self.task.classes, f"'{self.source}'")
        return [number for number in numbers if number is not None]

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS.get(self.task.name, {"accuracy": accuracy})
