"""Top-1 accuracy of a causal model's next-token prediction: the task `next-token:SOURCE`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from laconic.calibrate.collation import collate
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.row import Row, tokenizer_of
from laconic.evaluate.eval_task import EvalTask, TaskResult, source_of, stack_scores, tokenizer_name
from laconic.evaluate.metrics import Metric
from laconic.evaluate.prediction import predict_batches, rows_per_batch
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

LENGTH = 256
"""Tokens of a row at most."""
METRICS: dict[str, Metric] = {"accuracy": lambda table: float(table[:, 0].sum() / max(table[:, 1].sum(), 1))}
"""From the table's columns: right guesses and tokens of each row. Intervals and p-values follow from the table."""


@dataclass(frozen=True)
class NextToken(EvalTask):
    """Accuracy of the most likely next token on the rows of a corpus.

    Args:
        text: name of the corpus, as `--data` takes it.
    """

    prefix = "next-token"
    spellings = ("next-token:SOURCE",)
    kinds = (ModelTask.CAUSAL,)

    text: str

    @classmethod
    def from_name(cls, name: str) -> "NextToken":
        """The task `next-token:SOURCE`."""
        return cls(source_of(name))

    @property
    def name(self) -> str:
        return f"{self.prefix}:{self.text}"

    @property
    def source(self) -> str:
        return self.text

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """One line for each row of `corpus`."""
        self.check_model(lm)
        encoded = [tokenizer_of(lm)(row.joined)["input_ids"][:LENGTH] for row in corpus.examples]
        size = rows_per_batch(lm, LENGTH, 16)
        batches = [
            collate(lm, [Row(ids, labels=list(ids)) for ids in encoded[at : at + size]])
            for at in range(0, len(encoded), size)
        ]
        lines = []
        for batch, (values, rows, tokens, *_) in predict_batches(lm, batches, track, self.name):
            assert tokens is not None, "the next tokens are the labels of a causal model"
            right = torch.zeros(len(batch["input_ids"]), 2, dtype=torch.float64)
            guesses = torch.stack(((values.argmax(dim=-1) == tokens).double(), torch.ones_like(tokens).double()), dim=1)
            lines.append(right.index_add(0, rows, guesses))
        return TaskResult(stack_scores(lines, self.name, corpus), METRICS, {"tokenizer": tokenizer_name(lm)})

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        """The same for all settings, so that finished scores can be kept."""
        return METRICS
