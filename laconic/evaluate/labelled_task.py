"""The base class of tasks that compare predictions with the labels in the rows of any data source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from laconic.calibrate.batching import max_positions, tokenize_corpus
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.labels import convert_labels
from laconic.evaluate.eval_task import EvalTask, source_of, stack_scores
from laconic.evaluate.metrics import Scores
from laconic.evaluate.prediction import batch_by_length, predict_batches, restore_order
from laconic.model import LanguageModel
from laconic.model.predictions import Predictions
from laconic.progress import Track


@dataclass(frozen=True)
class LabelledTask(EvalTask):
    """A task whose name is `PREFIX:SOURCE`.

    Args:
        data: the data source.
    """

    example: ClassVar[str] = "dev.jsonl"
    """A source with labels, for error messages."""

    data: str

    @classmethod
    def from_name(cls, name: str) -> Self:
        """The task `PREFIX:SOURCE`."""
        return cls(source_of(name, cls.example))

    @property
    def name(self) -> str:
        return f"{self.prefix}:{self.data}"

    @property
    def source(self) -> str:
        return self.data

    def check_corpus(self, lm: LanguageModel, corpus: Corpus) -> None:
        convert_labels(lm, corpus)
        super().check_corpus(lm, corpus)

    def score_rows(
        self,
        lm: LanguageModel,
        corpus: Corpus,
        context: int,
        batch: int,
        track: Track,
        to_columns: Callable[[Predictions, Tensor], Tensor],
    ) -> Scores:
        """The table of a model that has one prediction for each row, in the order of the rows.

        Args:
            lm: the model.
            corpus: the rows, which are labelled.
            context: the largest number of tokens in a row.
            batch: rows in a batch.
            track: reports progress.
            to_columns: makes the columns of the table, (rows, columns), of the predictions and the labels of a batch.
        """
        self.check_model(lm)
        rows = tokenize_corpus(lm, corpus, max_length=context, labelled=True)
        parts, data = batch_by_length(lm, rows, batch)
        lines: list[Tensor] = []
        for _, predictions in predict_batches(lm, data, track, self.name):
            assert predictions.labels is not None, "the rows are labelled"
            lines.append(to_columns(predictions, predictions.labels).double())
        table = stack_scores(lines, self.name, corpus)
        return restore_order(torch.from_numpy(table), parts).numpy()


def context_of(lm: LanguageModel, most: int) -> int:
    """The largest number of tokens in a row: `most`, or the number of positions of the model if that is less."""
    return min(max_positions(lm) or most, most)
