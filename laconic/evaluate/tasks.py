"""Evaluation tasks by the names that `--tasks` takes, such as `glue/sst2`, `lama/trex` or `perplexity:SOURCE`.

`find_task` converts a name to a task; it looks up the kind of task by the first part of the name. A new kind of task is
a frozen dataclass that derives from `EvalTask`, with the class variables `prefix`, `spellings` and `kinds`, and with
the methods `from_name`, `source` and `evaluate`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import isabstract
from typing import ClassVar

from laconic.calibrate.batching import check_readable
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.sources import check_source, read
from laconic.errors import UserError, unknown
from laconic.evaluate.blimp import Blimp
from laconic.evaluate.contamination import check_disjoint
from laconic.evaluate.eval_task import EvalTask, source_of
from laconic.evaluate.glue import Glue
from laconic.evaluate.harness import Harness
from laconic.evaluate.lama import Lama
from laconic.evaluate.multi_label import MultiLabel
from laconic.evaluate.multiple_choice import MultipleChoice
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.products import FLOAT32
from laconic.evaluate.question_answering import QuestionAnswering
from laconic.evaluate.seq2seq import Seq2Seq
from laconic.evaluate.token_classification import TokenClassification
from laconic.model import LanguageModel
from laconic.registry import Registry
from laconic.runtime import EAGER, ONNX, OPENVINO
from laconic.runtime.cache_layout import IN_TORCH, check_cache

SPLIT = "dev"
"""The split that models are evaluated on."""
CorpusLoader = Callable[[EvalTask], Corpus]


@dataclass(frozen=True)
class FidelityRows:
    """`fidelity:SOURCE`: the rows on which a model of any kind is compared with its original.

    It gives no score to a single model, so it is not an `EvalTask`; `laconic.evaluate.fidelity` does the comparison.

    Args:
        source: name of the corpus; its dev split is read.
    """

    prefix: ClassVar[str] = "fidelity"
    spellings: ClassVar[tuple[str, ...]] = ("fidelity:SOURCE",)

    source: str

    @classmethod
    def from_name(cls, name: str) -> "FidelityRows":
        """The rows of `fidelity:SOURCE`.

        Raises:
            UserError: there is no source in the name.
        """
        return cls(source_of(name))


TaskKind = type[EvalTask] | type[FidelityRows]

TASK_KINDS: tuple[TaskKind, ...] = (
    Glue,
    MultiLabel,
    TokenClassification,
    QuestionAnswering,
    MultipleChoice,
    Lama,
    Blimp,
    Harness,
    Perplexity,
    Seq2Seq,
    FidelityRows,
)
"""The kinds of tasks that come with laconic."""


def _check_kind(kind: object, prefix: str) -> str | None:
    if not isinstance(kind, type) or not issubclass(kind, EvalTask) or isabstract(kind):
        return f"is no subclass of EvalTask{' that can be used' if isinstance(kind, type) else ''}"
    return None if kind.prefix == prefix else f"has the prefix {kind.prefix!r}"


TASK_REGISTRY: Registry[TaskKind] = Registry(
    "laconic.tasks", "task", {kind.prefix: kind for kind in TASK_KINDS}, check=_check_kind
)
"""Every kind of task by its prefix."""


def task_kinds() -> tuple[TaskKind, ...]:
    """All kinds of tasks, including those of plug-ins. Plug-ins that cannot be used are left out."""
    return tuple(TASK_REGISTRY.all().values())


def find_task(name: str) -> EvalTask | FidelityRows:
    """The task of this name.

    Args:
        name: the prefix of a kind, then `/` or `:` and a part that `from_name` of the kind reads, like `glue/sst2`.

    Raises:
        UserError: no kind has this prefix, or the rest of the name is not valid for the kind.

    Example:
        >>> find_task("glue/sst2").source
        'glue/sst2'
        >>> find_task("fidelity:builtin:pydoc")
        FidelityRows(source='builtin:pydoc')
    """
    prefix = re.split("[/:]", name, maxsplit=1)[0].lower()
    kind = TASK_REGISTRY.find(prefix)
    if kind is not None:
        return kind.from_name(name)
    raise unknown("task", name, [spelling for kind in task_kinds() for spelling in kind.spellings])


def load_corpus(task: EvalTask, limit: int | None = None) -> Corpus:
    """The rows of a task.

    Args:
        task: an evaluation task.
        limit: the largest number of rows; None for all.
    """
    return task.load_corpus(limit)


@dataclass(frozen=True)
class TaskSelection:
    """The tasks for a list of names.

    Args:
        tasks: the tasks that need no original to compare with, by name.
        fidelity: source of the rows on which two models are compared; None if no task names it.
    """

    tasks: dict[str, EvalTask]
    fidelity: str | None

    @property
    def sources(self) -> list[tuple[str, str]]:
        """The name of each task with the source of its rows."""
        pairs = [(name, task.source) for name, task in self.tasks.items()]
        return pairs if self.fidelity is None else [*pairs, (f"{FidelityRows.prefix}:{self.fidelity}", self.fidelity)]

    @property
    def compares_in_windows(self) -> bool:
        """Whether two models are compared in the windows of the first task."""
        first = next(iter(self.tasks.values()), None)
        return isinstance(first, Perplexity) and self.fidelity in (None, first.source)

    def rows_to_compare(self, corpora: dict[str, Corpus], limit: int | None) -> Corpus | None:
        """The rows for fidelity: those that were named for it, else those of the first task.

        Args:
            corpora: the rows of each task, by its name.
            limit: the largest number of rows to read from a named source; None for all.

        Returns:
            The rows; None if there is neither a named source nor a task.
        """
        if self.fidelity is not None:
            return read(self.fidelity, SPLIT).first(limit)
        return next((self.tasks[name].texts(corpus) for name, corpus in corpora.items()), None)


def select_tasks(
    names: Sequence[str], compared: bool, context: int | None = None, dtype: str = FLOAT32
) -> TaskSelection:
    """The tasks of these names.

    Args:
        names: as `find_task` takes them.
        compared: whether the model is compared with an original.
        context: the number of tokens in a window of perplexity; None for its default.
        dtype: dtype of the matrix products of perplexity.

    Raises:
        UserError: as `find_task`; `fidelity` has no original to compare with, or is named twice; or `context` or
            `dtype` is given and no task is a perplexity.
    """
    named = {name: _set_windows(find_task(name), context, dtype) for name in names}
    for setting, is_given in (("context", context is not None), ("dtype", dtype != FLOAT32)):
        if is_given and not any(isinstance(task, Perplexity) for task in named.values()):
            raise UserError(
                f"{setting} is a setting of perplexity, and no such task is named; name one, like "
                "perplexity:builtin:pydoc, or leave it out."
            )
    sources = {name: task.source for name, task in named.items() if isinstance(task, FidelityRows)}
    if sources and not compared:
        raise UserError(
            f"The task '{next(iter(sources))}' needs an original to compare with; name it: laconic evaluate MODEL "
            "--against ORIGINAL."
        )
    if len(sources) > 1:
        raise UserError(f"The models are compared on one source; name one of {', '.join(sources)}.")
    tasks = {name: task for name, task in named.items() if isinstance(task, EvalTask)}
    return TaskSelection(tasks, next(iter(sources.values()), None))


def _set_windows(task: EvalTask | FidelityRows, context: int | None, dtype: str) -> EvalTask | FidelityRows:
    """The task with these settings, if it is a perplexity task."""
    if not isinstance(task, Perplexity):
        return task
    return replace(task, context=task.context if context is None else context, dtype=dtype)


def standalone_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The names of tasks that need no original to compare with: all except `fidelity:SOURCE`.

    Args:
        names: as `find_task` takes them.
    """
    return tuple(name for name in names if isinstance(find_task(name), EvalTask))


def check_window_tasks(
    names: Sequence[str], compared: bool, place: str = "With stream", remedy: str = "evaluate without stream"
) -> None:
    """Check that tasks are perplexities, for models that are streamed or run in an engine.

    Args:
        names, compared: as for `select_tasks`.
        place, remedy: the beginning and the end of the error.

    Raises:
        UserError: a task is no perplexity, or the models are compared in other rows; or as `select_tasks`.
    """
    selected = select_tasks(names, compared)
    other = next((name for name, task in selected.tasks.items() if not isinstance(task, Perplexity)), None)
    if other is not None or not selected.compares_in_windows:
        named = f"'{name}'" if (name := other or next(iter(names), "")) else "no task"
        measured = "perplexity and the distance in its windows are measured"
        raise UserError(f"{place}, {measured}; got {named}; name perplexity:SOURCE, or {remedy}.")


def check_task(name: str, lm: LanguageModel | None = None) -> None:
    """`check_tasks` for one task of a model that is not compared with another.

    Args:
        name: as `find_task` takes it.
        lm: the model, which may lack its weights; with None only the task and its data are checked.
    """
    check_tasks([name], lm, compared=False)


def check_tasks(
    names: Sequence[str],
    lm: LanguageModel | None,
    *,
    compared: bool,
    calibration: Sequence[str] = (),
    runtime: str = EAGER,
    context: int | None = None,
    dtype: str = FLOAT32,
    load: CorpusLoader = load_corpus,
) -> None:
    """Check, before any weights are read, that a model can be evaluated on these tasks.

    Args:
        names: as `find_task` takes them.
        lm: the model, which may lack its weights; with None only the tasks and their data are checked.
        compared: whether the model is compared with an original.
        calibration: sources that the model was calibrated on.
        runtime: the runtime of the model.
        context: the number of tokens in a window of perplexity; None for its default.
        dtype: dtype of the matrix products of perplexity.
        load: reads the rows of a task.

    Raises:
        UserError: as `select_tasks`; a source does not exist; a task has its rows in a file that was calibrated on;
            a task generates text, for which the model has no cache in `runtime`; `lm` is not a model for a task, has
            fewer positions than `context`, or cannot read its rows; or `context` or `dtype` is given and no task is a
            perplexity.
    """
    selection = select_tasks(names, compared, context, dtype)
    check_disjoint(selection.sources, calibration)
    if selection.fidelity is not None:
        check_source(selection.fidelity, SPLIT)
    for task in selection.tasks.values():
        task.check_data()
        if lm is not None:
            task.check_model(lm)
            if runtime in (ONNX, OPENVINO) and task.generates:
                check_cache(lm, IN_TORCH)
    if lm is None:
        return
    for task in selection.tasks.values():
        task.check_rows(lm, lambda task=task: load(task))
    if selection.fidelity is not None:
        corpus = read(selection.fidelity, SPLIT)
        if lm.tokenizer is not None:
            check_readable(lm, corpus)
