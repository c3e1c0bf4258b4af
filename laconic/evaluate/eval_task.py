"""What every quality task has in common: rows in, a table and its metrics out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from laconic.calibrate.batching import Row, at_once, check_readable, collate
from laconic.calibrate.classes import called
from laconic.calibrate.corpus import Corpus, check_source, read
from laconic.calibrate.passes import evaluating
from laconic.errors import UserError
from laconic.evaluate.intervals import Metric, Table
from laconic.model import Batch, LanguageModel, Predictions, Task, predict
from laconic.model.tokens import check_decoder_start, vocabulary_size
from laconic.progress import Track

LOGITS = 2**26
"""How many logits one batch may have: 256 MiB in float32."""

LIKE = {
    Task.CLASSIFICATION: "glue/TASK",
    Task.REGRESSION: "glue/stsb",
    Task.CAUSAL: "perplexity:SOURCE",
    Task.MASKED: "blimp",
    Task.SEQ2SEQ: "seq2seq:SOURCE",
    Task.EMBEDDING: "glue/stsb",
}
"""A task for models of each kind; none judges multi-label ones alone."""

COMPARED = 1000
"""Rows of a task that two models are compared on, where that takes far longer than the task: it is about every token of
a sentence, and the task asks for one."""


@dataclass(frozen=True)
class Judged:
    """One model on one task: `table` has one line for each row, `settings` is what the figures depend on.

    rows: the place in the corpus of each line; None where every row of it has one.
    """

    table: Table
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Any]
    rows: tuple[int, ...] | None = None


class EvalTask(ABC):
    """A quality task: where its rows come from, and how a model is judged on them. A frozen dataclass."""

    kinds: ClassVar[tuple[Task, ...]]
    """What a model may predict to be judged on this task."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `--tasks` calls it."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The name of the corpus whose dev split is judged on."""

    @property
    def generates(self) -> bool:
        """Whether it lets the model write, for which exported models lack a cache."""
        return False

    @abstractmethod
    def judge(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        """Judge `lm` on every row of `corpus`; UserError where it is not a model for this task."""

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric] | None:
        """Those of a table that was kept with these `settings`; None for a task whose tables are not kept."""
        return None

    def check(self) -> None:
        """Raise UserError where `corpus` would for what is missing; nothing is read."""
        check_source(self.source, "dev")

    def corpus(self, limit: int | None) -> Corpus:
        """The first `limit` rows of the dev split, or all of them."""
        return read(self.source, "dev").first(limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """Rows of `corpus` as plain text, for a comparison that has nothing to do with the task."""
        return corpus

    def check_rows(self, lm: LanguageModel, read: Callable[[], Corpus]) -> None:
        """Raise UserError where `judge` would for the rows that `read` gives; the weights of `lm` may be absent.

        What needs its tokenizer is found out where it has one.
        """
        self.refuse_rows(lm, read())

    def refuse_rows(self, lm: LanguageModel, corpus: Corpus) -> None:
        """Raise UserError unless these rows are for this task and this model, whose weights may be absent."""
        if lm.tokenizer is not None:
            check_readable(lm, self.texts(corpus))

    def refuse(self, lm: LanguageModel) -> None:
        """Raise UserError unless a model of that structure can be judged; its weights may be absent."""
        if lm.task not in self.kinds:
            wanted = " or ".join(kind.value for kind in self.kinds)
            raise UserError(
                f"The task '{self.name}' needs {a(wanted)} model; {called(lm)} is {a(lm.task.value)} model; "
                f"{_instead(lm.task)}."
            )
        check_decoder_start(lm)


def _instead(task: Task) -> str:
    """How a model for `task` can be judged; as a clause."""
    compare = "compare it with its original: laconic evaluate MODEL --against ORIGINAL --tasks fidelity:SOURCE"
    return f"name a task for such models, like {LIKE[task]}, or {compare}" if task in LIKE else compare


def a(words: str) -> str:
    """`words` after their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def predicted(
    lm: LanguageModel, batches: Sequence[Batch], track: Track, what: str
) -> Iterator[tuple[Batch, Predictions]]:
    """Each batch with what the model says about it, both on the CPU, one batch at a time."""
    with evaluating(lm):
        for batch in track(batches, what):
            yield batch, on_cpu(predict_on(lm, batch)[0])


@torch.inference_mode()
def predict_on(lm: LanguageModel, batch: Batch, hidden: bool = False) -> tuple[Predictions, Tensor]:
    """`laconic.model.predict` on the model's device, without gradients.

    Raises:
        UserError: a prediction is NaN or infinite.
    """
    predictions, pooled = predict(lm, to_device(batch, lm.device), hidden)
    check_finite(lm, predictions)
    return predictions, pooled


def check_finite(lm: LanguageModel, predictions: Predictions) -> None:
    """Raise UserError where one is NaN or infinite."""
    if not torch.isfinite(predictions.values).all():
        raise UserError(f"The model '{lm.source}' predicts NaN or infinite values; it is broken or out of its range.")


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def on_cpu(predictions: Predictions) -> Predictions:
    values, rows, labels, distribution = predictions
    return Predictions(values.cpu(), rows.cpu(), None if labels is None else labels.cpu(), distribution)


def rows_per_batch(lm: LanguageModel, length: int, wanted: int) -> int:
    """`wanted` rows of `length` tokens, or fewer where every token is predicted and the logits would be too many."""
    if lm.task not in (Task.CAUSAL, Task.MASKED, Task.SEQ2SEQ):
        return at_once(lm, wanted)
    return max(1, min(wanted, LOGITS // (length * vocabulary_size(lm.model))))


def by_length(lm: LanguageModel, rows: Sequence[Row], wanted: int) -> tuple[list[list[int]], list[Batch]]:
    """The places of the rows in each batch, and the batches, of about `wanted`: rows of one length carry no padding."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].input_ids))
    size = rows_per_batch(lm, max((len(row.input_ids) for row in rows), default=1), wanted)
    parts = [order[at : at + size] for at in range(0, len(order), size)]
    return parts, [collate(lm, [rows[at] for at in part]) for part in parts]


def tokenizer_name(lm: LanguageModel) -> str:
    """The class and vocabulary of the tokenizer; figures per token depend on it."""
    if lm.tokenizer is None:
        return "none"
    return f"{type(lm.tokenizer).__name__}, {len(lm.tokenizer)} tokens"


def stacked(lines: Iterable[Tensor], name: str, corpus: Corpus) -> Table:
    """The lines of every batch as one table; UserError where there are none."""
    parts = list(lines)
    if not parts:
        raise UserError(f"The task '{name}' has no rows to judge in '{corpus.source}'; give more rows.")
    return torch.cat(parts).double().numpy()


def in_order(lines: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
    """The lines of the batches that `by_length` made, in the order of the rows."""
    return lines[torch.tensor([at for part in parts for at in part]).argsort()]
