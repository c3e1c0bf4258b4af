"""The base class of evaluation tasks: rows of data and a model in, a table of scores and its metrics out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from laconic.calibrate.batching import check_readable
from laconic.calibrate.classes import called
from laconic.calibrate.corpus import Corpus, check_source, read
from laconic.errors import UserError
from laconic.evaluate.metrics import Metric, Scores
from laconic.model import LanguageModel, Task
from laconic.model.tokens import check_decoder_start
from laconic.progress import Track

EXAMPLE_TASKS = {
    Task.CLASSIFICATION: "glue/TASK",
    Task.REGRESSION: "glue/stsb",
    Task.CAUSAL: "perplexity:SOURCE",
    Task.MASKED: "blimp",
    Task.SEQ2SEQ: "seq2seq:SOURCE",
    Task.EMBEDDING: "glue/stsb",
}
"""A task for each kind of model; there is none for multi-label classifiers."""

MAX_COMPARED_ROWS = 1000
"""Rows on which two models are compared, at most, for tasks that look at one token of a row: the comparison looks at
every token, and takes far longer."""


@dataclass(frozen=True)
class TaskResult:
    """Scores of one model on one task.

    Args:
        table: one line for each row of data that was scored.
        metrics: functions of `table`, by name; the first is the task's main one.
        settings: what the scores depend on, such as the context length and the tokenizer; plain JSON values.
        rows: index in the corpus of each line; None where every row of the corpus has a line.
    """

    table: Scores
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Any]
    rows: tuple[int, ...] | None = None


class EvalTask(ABC):
    """An evaluation task: where its rows come from, and how a model is scored on them.

    A task is a frozen dataclass of its parameters; `laconic.evaluate.tasks` finds it by name. It sets the class
    variables below, and implements `from_name`, `name`, `source` and `evaluate`. The other methods have defaults, which
    suit a task whose rows are the dev split of a data source.
    """

    prefix: ClassVar[str]
    """The first part of the names of these tasks, in lower case."""
    spellings: ClassVar[tuple[str, ...]]
    """How the names of these tasks are spelled, like `glue/sst2` or `perplexity:SOURCE`."""
    kinds: ClassVar[tuple[Task, ...]]
    """The kinds of model that this task can score."""

    @classmethod
    @abstractmethod
    def from_name(cls, name: str) -> "EvalTask":
        """The task of this name.

        Args:
            name: as the user wrote it; its first part is `prefix`, in any case.

        Raises:
            UserError: there is no such task.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name by which `--tasks` finds this task."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The data source of the rows; its dev split is used."""

    @property
    def generates(self) -> bool:
        """Whether the model generates text, which exported models cannot: they have no key-value cache."""
        return False

    @abstractmethod
    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model on every row.

        Args:
            lm: the model, with weights.
            corpus: rows, from `load_corpus`.
            track: shows progress.

        Raises:
            UserError: the model is not one for this task, or predicts NaN.
        """

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric] | None:
        """The metrics of a table that was stored with these settings.

        Args:
            settings: `TaskResult.settings` of the stored result.

        Returns:
            None for a task whose results are not stored.
        """
        return None

    def check_data(self) -> None:
        """Raise UserError if the data of the task is missing; no row is read."""
        check_source(self.source, "dev")

    def load_corpus(self, limit: int | None) -> Corpus:
        """The rows of the dev split.

        Args:
            limit: how many of the first rows; None for all.
        """
        return read(self.source, "dev").first(limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """The rows as plain texts, on which a model is compared with its original.

        Args:
            corpus: rows of this task.
        """
        return corpus

    def check_rows(self, lm: LanguageModel, read: Callable[[], Corpus]) -> None:
        """Check that the model can be scored on the rows of this task.

        Args:
            lm: the model; it may lack its weights, and its tokenizer, without which less can be checked.
            read: reads the rows.

        Raises:
            UserError: `evaluate` would fail on these rows.
        """
        self.check_corpus(lm, read())

    def check_corpus(self, lm: LanguageModel, corpus: Corpus) -> None:
        """Check that rows suit this task and a model.

        Args:
            lm: the model; it may lack its weights.
            corpus: the rows.

        Raises:
            UserError: they do not.
        """
        if lm.tokenizer is not None:
            check_readable(lm, self.texts(corpus))

    def check_model(self, lm: LanguageModel) -> None:
        """Check that this task can score a model.

        Args:
            lm: the model; it may lack its weights.

        Raises:
            UserError: it is of another kind.
        """
        if lm.task not in self.kinds:
            needed, found = with_article(" or ".join(kind.value for kind in self.kinds)), with_article(lm.task.value)
            raise UserError(
                f"The task '{self.name}' needs {needed} model; {called(lm)} is {found} model; {_remedy(lm.task)}."
            )
        check_decoder_start(lm)


def _remedy(task: Task) -> str:
    """How a model of this kind can be evaluated, as a clause of an error."""
    compare = "compare it with its original: laconic evaluate MODEL --against ORIGINAL --tasks fidelity:SOURCE"
    example = EXAMPLE_TASKS.get(task)
    return f"name a task for such models, like {example}, or {compare}" if example else compare


def source_of(name: str) -> str:
    """The source in the name of a task.

    Args:
        name: `PREFIX:SOURCE`.

    Raises:
        UserError: there is none.

    Example:
        >>> source_of("perplexity:builtin:pydoc")
        'builtin:pydoc'
    """
    prefix, _, source = name.partition(":")
    if not source:
        raise UserError(f"The task '{prefix}' lacks its text; name it as {prefix}:SOURCE, like {prefix}:builtin:pydoc.")
    return source


def with_article(words: str) -> str:
    """The words with `a` or `an` before them.

    Example:
        >>> with_article("embedding")
        'an embedding'
    """
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def tokenizer_name(lm: LanguageModel) -> str:
    """The class and the number of tokens of the model's tokenizer, on which figures per token depend."""
    if lm.tokenizer is None:
        return "none"
    return f"{type(lm.tokenizer).__name__}, {len(lm.tokenizer)} tokens"


def stack_scores(lines: Iterable[Tensor], name: str, corpus: Corpus) -> Scores:
    """The lines of all batches as one table.

    Args:
        lines: (rows, columns) of each batch.
        name: of the task, for the error.
        corpus: where the rows are from, for the error.

    Raises:
        UserError: there is no batch.
    """
    parts = list(lines)
    if not parts:
        raise UserError(f"The task '{name}' has no rows to judge in '{corpus.source}'; give more rows.")
    return torch.cat(parts).double().numpy()
