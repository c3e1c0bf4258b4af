"""The base class of evaluation tasks, which compute a table of scores from rows of data; and functions for tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.batching import check_readable
from laconic.calibrate.classes import quote_model
from laconic.calibrate.corpus import Corpus, as_json, parse_json, read_text
from laconic.calibrate.sources import check_source, read
from laconic.errors import UserError, must_be, quote
from laconic.evaluate.metrics import Metric, Scores
from laconic.model import LanguageModel, ModelTask
from laconic.model.tokens import check_decoder_start
from laconic.progress import Track

EXAMPLE_TASKS = {
    ModelTask.CLASSIFICATION: "glue/TASK",
    ModelTask.MULTI_LABEL: "multi-label:SOURCE",
    ModelTask.REGRESSION: "glue/stsb",
    ModelTask.TOKEN_CLASSIFICATION: "token-classification:SOURCE",
    ModelTask.QUESTION_ANSWERING: "question-answering:SOURCE",
    ModelTask.MULTIPLE_CHOICE: "multiple-choice:SOURCE",
    ModelTask.CAUSAL: "perplexity:SOURCE",
    ModelTask.MASKED: "blimp",
    ModelTask.SEQ2SEQ: "seq2seq:SOURCE",
    ModelTask.EMBEDDING: "glue/stsb",
}
"""A suggestion of a task for each kind of model, for error messages."""

MAX_COMPARED_ROWS = 1000
"""The largest number of rows for fidelity, for tasks that score one token per row. Fidelity compares all tokens, which
takes far longer."""


@dataclass(frozen=True)
class TaskResult:
    """Scores of one model on one task.

    Args:
        table: (rows, columns) scores, one line for each row of data that was scored.
        metrics: functions of `table`, by name. The first is the main metric of the task.
        settings: the settings that the scores depend on, such as the context length and the tokenizer, as JSON values.
        rows: the index in the corpus of each line; None if all rows of the corpus were scored.
    """

    table: Scores
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Any]
    rows: tuple[int, ...] | None = None


class EvalTask(ABC):
    """An evaluation task: it reads rows of data, and scores a model on them.

    A task is a frozen dataclass of its parameters; `laconic.evaluate.tasks` finds it by name. A subclass sets the class
    variables below and implements `from_name`, `source` and `evaluate`. The other methods have defaults for a
    task whose rows are the dev split of a data source.
    """

    prefix: ClassVar[str]
    """The first part of the names of these tasks, in lower case."""
    spellings: ClassVar[tuple[str, ...]]
    """The forms of the names of these tasks, like `glue/sst2` or `perplexity:SOURCE`, for help and error messages."""
    kinds: ClassVar[tuple[ModelTask, ...]]
    """The kinds of model that this task can score."""

    @classmethod
    @abstractmethod
    def from_name(cls, name: str) -> "EvalTask":
        """Create the task with a name.

        Args:
            name: the text of the user. Its first part is `prefix`, in upper or lower case.

        Raises:
            UserError: there is no task with this name.
        """

    @property
    @abstractmethod
    def source(self) -> str:
        """The data source of the rows. Its dev split is used."""

    @property
    def name(self) -> str:
        """The name of this task in `--tasks`; by default that of its source."""
        return self.source

    @property
    def generates(self) -> bool:
        """Whether the task lets the model generate text. Exported models cannot, as they have no key-value cache."""
        return False

    @abstractmethod
    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model on each row.

        Args:
            lm: the model, with weights.
            corpus: rows, from `load_corpus`.
            track: reports progress.

        Raises:
            UserError: the task cannot score this kind of model, or the model predicts NaN.
        """

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric] | None:
        """The metrics of a table of scores that is read from the cache.

        Args:
            settings: `TaskResult.settings` of the cached result.

        Returns:
            The metrics by name; None for a task whose results are not cached.
        """
        return None

    def check_data(self) -> None:
        """Raise UserError if the data of the task is missing; no row is read."""
        check_source(self.source, "dev")

    def load_corpus(self, limit: int | None) -> Corpus:
        """Read the rows of the dev split.

        Args:
            limit: the number of rows to read from the beginning; None for all.
        """
        return read(self.source, "dev").first(limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """The rows as plain texts, for comparing a model with its original (fidelity).

        Args:
            corpus: rows of this task.
        """
        return corpus

    def check_rows(self, lm: LanguageModel, read: Callable[[], Corpus]) -> None:
        """Check that the model can be scored on the rows of this task.

        Args:
            lm: the model, with or without weights. Without a tokenizer, fewer checks are possible.
            read: reads the rows.

        Raises:
            UserError: `evaluate` would fail on these rows.
        """
        self.check_corpus(lm, read())

    def check_corpus(self, lm: LanguageModel, corpus: Corpus) -> None:
        """Check that this task can score a model on some rows.

        Args:
            lm: the model, with or without weights.
            corpus: the rows.

        Raises:
            UserError: the rows do not fit the task or the model.
        """
        if lm.tokenizer is not None:
            check_readable(lm, self.texts(corpus))

    def check_model(self, lm: LanguageModel) -> None:
        """Check that this task can score a model.

        Args:
            lm: the model, with or without weights.

        Raises:
            UserError: the task does not support this kind of model.
        """
        if lm.task not in self.kinds:
            kinds = with_article(" or ".join(kind.value for kind in self.kinds))
            example = EXAMPLE_TASKS.get(lm.task)
            remedy = f"name a task for such models, like {example}, or " if example else ""
            raise UserError(
                f"The task '{self.name}' needs {kinds} model; {quote_model(lm)} is {with_article(lm.task.value)} "
                f"model; {remedy}compare it with its original: laconic evaluate MODEL --against ORIGINAL --tasks "
                "fidelity:SOURCE."
            )
        check_decoder_start(lm)


def source_of(name: str, example: str = "builtin:pydoc") -> str:
    """The data source in the name of a task.

    Args:
        name: text of the form `PREFIX:SOURCE`.
        example: a source that the task can read, for the error message.

    Raises:
        UserError: the name has no source.

    Example:
        >>> source_of("perplexity:builtin:pydoc")
        'builtin:pydoc'
    """
    prefix, _, source = name.partition(":")
    if not source:
        raise UserError(
            f"The task '{prefix}' has no data source; write it as {prefix}:SOURCE, like {prefix}:{example}."
        )
    return source


def with_article(words: str) -> str:
    """The words with `a` or `an` before them.

    Example:
        >>> with_article("embedding")
        'an embedding'
    """
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def tokenizer_name(lm: LanguageModel) -> str:
    """The class and the vocabulary size of the tokenizer, which figures per token depend on."""
    return "none" if lm.tokenizer is None else describe_tokenizer(lm.tokenizer)


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The class and the vocabulary size of a tokenizer."""
    return f"{type(tokenizer).__name__}, {len(tokenizer)} tokens"


def stack_scores(lines: Iterable[Tensor], name: str, corpus: Corpus) -> Scores:
    """Concatenate the scores of all batches.

    Args:
        lines: (rows, columns) scores of each batch.
        name: the name of the task, for the error message.
        corpus: the rows of the task, for the error message.

    Raises:
        UserError: there is no batch.
    """
    parts = list(lines)
    if not parts:
        raise UserError(f"The task '{name}' has no rows to evaluate in '{corpus.source}'; give more rows.")
    return torch.cat(parts).double().numpy()


JsonObject = Mapping[str, Any]


def read_objects(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Read a file with one JSON object per line. Blank lines are skipped.

    Args:
        path: the path of the file.

    Yields:
        The place of each object in the form `file:line`, and the object.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = parse_json(line, f"{path}:{number}")
            if not isinstance(row, Mapping):
                raise must_be(f"{path}:{number}", "an object of named fields", as_json(row))
            yield f"{path}:{number}", row


def text_field(row: JsonObject, names: tuple[str, ...], place: str) -> str:
    """The text in a field of a row.

    Args:
        row: the JSON object.
        names: alternative names of the field; the first one in the row is read.
        place: the place of the row, for error messages.

    Example:
        >>> text_field({"good": " Cats sleep. "}, ("sentence_good", "good"), "a.jsonl:1")
        'Cats sleep.'

    Raises:
        UserError: the row has none of these fields, or the value is not text.
    """
    for name in names:
        if name in row:
            if isinstance(row[name], str) and row[name].strip():
                return row[name].strip()
            raise UserError(f"{place} must have text in the field '{name}'; got {quote(as_json(row[name]))}.")
    fields = ", ".join(f"'{name}'" for name in row) or "none"
    accepted = " or ".join(f"'{name}'" for name in names)
    raise UserError(f"{place} has no field {accepted} (fields: {fields}); add it.")
