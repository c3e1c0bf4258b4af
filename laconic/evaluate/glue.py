"""GLUE: the official metrics of its nine tasks (Wang et al. 2019, table 1, https://arxiv.org/abs/1804.07461)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from laconic.calibrate.corpus import Corpus, batches
from laconic.calibrate.sources import GlueTask
from laconic.errors import UserError
from laconic.evaluate.intervals import Metric, Table
from laconic.evaluate.judging import Judge, Judged, predicted, refuse_unless, stacked, tokenizer_name
from laconic.model import LanguageModel, Task
from laconic.progress import Track

BATCH = 32
CONTEXT = 128
"""The input length of the published GLUE figures."""


def accuracy(table: Table) -> float:
    """Share of the lines (truth, prediction) in which both agree."""
    return float(np.mean(table[:, 0] == table[:, 1]))


def f1(table: Table) -> float:
    """F1 of class 1; 0 where it is neither there nor predicted."""
    score = f1_score(table[:, 0], table[:, 1], zero_division=0)  # type: ignore[arg-type]
    return float(score)


def matthews(table: Table) -> float:
    """Matthews correlation; 0 for a constant prediction."""
    return float(matthews_corrcoef(table[:, 0], table[:, 1]))


def pearson(table: Table) -> float:
    """Pearson correlation."""
    return _correlation(table, pearsonr)


def spearman(table: Table) -> float:
    """Spearman rank correlation."""
    return _correlation(table, spearmanr)


def _correlation(table: Table, coefficient: Callable[..., Any]) -> float:
    truth, prediction = table.T
    # Undefined for a constant column; a model that always says the same knows nothing.
    if len(table) < 2 or np.ptp(truth) == 0 or np.ptp(prediction) <= 1e-12 * np.abs(prediction).max():
        return 0.0
    return float(coefficient(truth, prediction)[0])


METRICS: dict[str, dict[str, Metric]] = {
    "cola": {"matthews": matthews},
    "mrpc": {"f1": f1, "accuracy": accuracy},
    "qqp": {"f1": f1, "accuracy": accuracy},
    "stsb": {"pearson": pearson, "spearman": spearman},
}
"""By task; those that are not here are judged by accuracy."""


@dataclass(frozen=True)
class Glue(Judge):
    """The dev split of one GLUE task."""

    task: GlueTask

    @property
    def source(self) -> str:
        return f"glue/{self.task.name}"

    def judge(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        """The table has the true label and the predicted class or score of each row."""
        refuse_unless(lm, (Task.CLASSIFICATION, Task.REGRESSION), self.source)
        outputs, needed = lm.model.config.num_labels, max(1, len(self.task.classes))
        if outputs != needed:
            raise UserError(
                f"The task '{self.source}' needs a model with num_labels {needed}; '{lm.source}' has {outputs}."
            )
        classes = _class_numbers(lm, self.task)
        data = batches(lm, corpus, batch_size=BATCH, max_length=CONTEXT)
        lines: list[torch.Tensor] = []
        for _, (values, _, labels, categorical) in predicted(lm, data, track, self.source):
            if labels is None:
                raise UserError(f"The dev split of '{self.source}' has rows without a label; use the labelled file.")
            said = classes[values.argmax(-1)] if categorical else values[:, 0]
            lines.append(torch.stack((labels.double(), said.double()), dim=1))
        settings = {"context": CONTEXT, "tokenizer": tokenizer_name(lm)}
        metrics = METRICS.get(self.task.name, {"accuracy": accuracy})
        return Judged(stacked(lines, self.source, corpus), metrics, settings)


def _class_numbers(lm: LanguageModel, task: GlueTask) -> torch.Tensor:
    """GLUE's number of each of the model's classes; they differ where the model names its classes in another order."""
    labels = lm.model.config.id2label or {}
    names = [str(label).lower() for _, label in sorted(labels.items())]
    if set(names) == set(task.classes):
        return torch.tensor([task.classes.index(name) for name in names])
    return torch.arange(len(task.classes))
