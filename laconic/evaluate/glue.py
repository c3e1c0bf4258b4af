"""GLUE: the official metrics of its nine tasks (Wang et al. 2019, table 1, https://arxiv.org/abs/1804.07461).

STS-B judges embedding models too, by how similar the vectors of two texts are (`laconic.evaluate.similarity`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from laconic.calibrate.batching import rows_of
from laconic.calibrate.classes import called, class_names, mismatch, places_of
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.labels import labels_of
from laconic.calibrate.sources import GlueTask
from laconic.errors import UserError
from laconic.evaluate.eval_task import EvalTask, Judged, a, by_length, in_order, predicted, tokenizer_name
from laconic.evaluate.intervals import Metric, Share, Table
from laconic.evaluate.similarity import similarities
from laconic.model import LanguageModel, Task
from laconic.model.tokens import check_decoder_start
from laconic.progress import Track

BATCH = 32
CONTEXT = 128
"""The input length of the published GLUE figures."""


accuracy = Share(lambda table: table[:, 0] == table[:, 1])
"""Share of the lines (truth, prediction) in which both agree."""


def f1(table: Table) -> float:
    """F1 of class 1; 0 where it is neither there nor predicted."""
    true, said = (table[:, :2] == 1).T
    # Of resampled tables there are thousands, for which scikit-learn's functions, which check their inputs, are slow.
    return float(2 * np.sum(true & said) / max(np.sum(true) + np.sum(said), 1))


def matthews(table: Table) -> float:
    """Matthews correlation of two classes: Pearson's of the two columns; 0 where either is constant."""
    truth, said = (table - table.mean(axis=0))[:, :2].T
    spread = float(np.sqrt(truth @ truth) * np.sqrt(said @ said))
    return 0.0 if spread == 0 else float(truth @ said) / spread


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
class Glue(EvalTask):
    """The dev split of one GLUE task."""

    kinds = (Task.CLASSIFICATION, Task.REGRESSION)

    task: GlueTask

    @property
    def name(self) -> str:
        return self.source

    @property
    def source(self) -> str:
        return f"glue/{self.task.name}"

    def refuse(self, lm: LanguageModel) -> None:
        if self._compares(lm):
            check_decoder_start(lm)
            return
        super().refuse(lm)
        outputs, needed = lm.model.config.num_labels, max(1, len(self.task.classes))
        if outputs != needed:
            raise UserError(
                f"The task '{self.source}' needs a model with num_labels {needed}; {called(lm)} has {outputs}; name "
                "another task, or a model that was trained for this one."
            )
        kind = Task.CLASSIFICATION if self.task.classes else Task.REGRESSION
        if lm.task is not kind:
            raise UserError(
                f"The task '{self.source}' needs {a(kind.value)} model; {called(lm)} is {a(lm.task.value)} model, by "
                "the problem_type in its config.json."
            )
        self._classes(lm)

    def refuse_rows(self, lm: LanguageModel, corpus: Corpus) -> None:
        labels_of(lm, self._named(corpus))
        super().refuse_rows(lm, corpus)

    def _named(self, corpus: Corpus) -> Corpus:
        return replace(corpus, classes=self.task.classes)

    def judge(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        """The table has the true label and the predicted class or score of each row, by the numbers of GLUE.

        Of an embedding model the score is the similarity of the vectors of the two texts, by what its folder declares.
        """
        self.refuse(lm)
        if self._compares(lm):
            return self._compared(lm, corpus, track)
        classes = torch.tensor(self._classes(lm))
        rows = rows_of(lm, self._named(corpus), max_length=CONTEXT, labelled=True)
        parts, data = by_length(lm, rows, BATCH)
        lines: list[torch.Tensor] = []
        for _, (values, _, labels, _) in predicted(lm, data, track, self.source):
            assert labels is not None, "they were asked for"
            # Both are the model's numbers; F1 is of GLUE's class 1.
            true, said = (classes[labels], classes[values.argmax(-1)]) if self.task.classes else (labels, values[:, 0])
            lines.append(torch.stack((true.double(), said.double()), dim=1))
        settings: dict[str, Any] = {"context": CONTEXT, "tokenizer": tokenizer_name(lm)}
        if self.task.classes:
            # What each output was taken for.
            settings["classes"] = [self.task.classes[number] for number in classes]
        table = in_order(torch.cat(lines), parts).numpy()
        return Judged(table, self.metrics(settings), settings)

    def _compares(self, lm: LanguageModel) -> bool:
        """Whether a row is judged by the similarity of its two texts."""
        return lm.task is Task.EMBEDDING and not self.task.classes

    def _compared(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        truth = torch.tensor(labels_of(lm, corpus), dtype=torch.float64)
        found = similarities(lm, corpus, track, self.source, max_length=CONTEXT)
        settings = {
            "context": CONTEXT,
            "tokenizer": tokenizer_name(lm),
            "similarity": lm.embedding_pipeline.settings.similarity,
            "vectors": lm.embedding_pipeline.describe(),
        }
        return Judged(torch.stack((truth, found), dim=1).numpy(), self.metrics(settings), settings)

    def _classes(self, lm: LanguageModel) -> list[int]:
        """The number in GLUE of each of the model's classes.

        Raises:
            UserError: they do not match.
        """
        places = places_of(class_names(lm), self.task.classes) if self.task.classes else []
        if None in places:
            raise mismatch(lm, self.task.classes, f"'{self.source}'")
        return [place for place in places if place is not None]

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS.get(self.task.name, {"accuracy": accuracy})
