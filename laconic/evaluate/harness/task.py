"""A task of the lm-evaluation-harness as an evaluation task. The table has the harness's scores of each row."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from numbers import Real
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from laconic.calibrate.batching import max_positions
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.passes import evaluating
from laconic.calibrate.row import tokenizer_of
from laconic.errors import UserError, unknown
from laconic.evaluate.eval_task import EvalTask, TaskResult, tokenizer_name
from laconic.evaluate.harness.local import find_task_file
from laconic.evaluate.metrics import Metric, Scores
from laconic.evaluate.prediction import rows_per_batch
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

if TYPE_CHECKING:
    from laconic.evaluate.harness.adapter import LoadedTask

BATCH = 16
CONTEXT = 2048
"""The context length that the harness assumes for a model without a limit."""


@dataclass(frozen=True)
class Prompts(Corpus):
    """The first request of each row of a task.

    Args:
        digest: a hash of all requests, rows and right answers.
    """

    digest: str = ""


@dataclass(frozen=True)
class Harness(EvalTask):
    """A task of the lm-evaluation-harness, without few-shot examples unless the task itself has them.

    Args:
        task: its name in the harness.

    Reference:
        Gao et al., https://doi.org/10.5281/zenodo.5371628.
    """

    prefix = "harness"
    spellings = ("harness/NAME",)
    kinds = (ModelTask.CAUSAL, ModelTask.SEQ2SEQ)

    task: str

    @classmethod
    def from_name(cls, name: str) -> "Harness":
        """The task `harness/NAME`. `check_data` checks that the harness has it."""
        _, slash, task = name.partition("/")
        if not slash:
            raise unknown("task", name, cls.spellings)
        return cls(task)

    @property
    def source(self) -> str:
        return f"harness/{self.task}"

    @property
    def generates(self) -> bool:
        return self._adapter().generates_text(self.task)

    def check_data(self) -> None:
        self._adapter().check_task(self.task)

    def check_model(self, lm: LanguageModel) -> None:
        """Check that the harness can score a model with its tokenizer.

        The harness puts the start token (or else the end token) before a prompt, and stops generating at the end token.

        Raises:
            UserError: the task does not support this kind of model, or the tokenizer lacks these tokens.
        """
        super().check_model(lm)
        if lm.tokenizer is None or lm.tokenizer.eos_token_id is not None:
            return
        if lm.tokenizer.bos_token_id is None or self.generates:
            raise UserError(
                f"The tokenizer of '{lm.source}' has no token for the end of a text (eos_token), which '{self.name}' "
                "needs; use the tokenizer that the model was trained with."
            )

    def check_rows(self, lm: LanguageModel, read: Callable[[], Corpus]) -> None:
        """Check local files. Data that the harness downloads are checked when it builds its requests."""
        self._adapter().check_rows(self.task)

    def load_corpus(self, limit: int | None) -> Prompts:
        """The first request of each of the first `limit` rows: a prompt and the answer to score."""
        built = self._load()
        with self._adapter().isolate_harness():
            built.task.build_all_requests(limit=limit)
        rows: dict[int | None, Example] = {}
        hashed = hashlib.blake2b(version("lm_eval").encode(), digest_size=16)
        for request in built.task.instances:
            prompt, *answer = request.args
            target = answer[0].strip() if answer and isinstance(answer[0], str) else None
            rows.setdefault(request.doc_id, Example(prompt, target=target))
            hashed.update(json.dumps([request.args, request.doc], default=str).encode())
        hashed.update(json.dumps(built.task.dump_config(), default=str).encode())
        return Prompts(built.source, built.split, tuple(rows.values()), digest=hashed.hexdigest())

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model. The table has the harness's scores of each row, in one or more columns for each metric."""
        self.check_model(lm)
        if lm.target_tokenizer is not None:
            raise UserError(
                f"'{self.name}' reads and scores with one tokenizer; '{lm.source}' has another one for its targets."
            )
        adapter, built, tokenizer = self._adapter(), self._load(), tokenizer_of(lm)
        with evaluating(lm), adapter.isolate_harness():
            batch = rows_per_batch(lm, max_positions(lm) or CONTEXT, BATCH)
            scorer = adapter.HarnessModel(lm, batch, track, self.name)
            outcome = adapter.run_task(built.task, self.task, scorer, len(corpus.examples))
        table, widths = score_table(outcome["samples"][self.task])
        settings = {
            "split": built.split,
            "few_shot": outcome["n-shot"][self.task],
            "context": scorer.max_length,
            "requests": scorer.n_requests,
            "cut_on_the_left": scorer.n_truncated,
            "answers_cut": scorer.n_answers_truncated,
            "batch": batch,
            # The harness uses the special tokens that the tokenizer adds to a text.
            "special_tokens": list(map(str, tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"]))),
            "tokenizer": tokenizer_name(lm),
            "seeds": adapter.SEEDS,
            "columns": widths,
            "harness": _harness_results(outcome, self.task),
        }
        return TaskResult(table, self._metrics(built, widths), settings)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return self._metrics(self._load(), settings["columns"])

    def _metrics(self, built: "LoadedTask", widths: Mapping[str, int]) -> Mapping[str, Metric]:
        if not widths:
            raise UserError(
                f"'{self.name}' scores all rows together, for which laconic has no interval; take another task."
            )
        # The abstract method `aggregation` has no type.
        aggregations: Any = built.task.aggregation()
        return column_metrics(widths, aggregations)

    def _load(self) -> "LoadedTask":
        return self._adapter().load_task(self.task)

    def _adapter(self) -> ModuleType:
        """The module that imports the harness.

        Raises:
            UserError: the harness is not installed, or has no such task.
        """
        find_task_file(self.task)
        return import_module("laconic.evaluate.harness.adapter")


def _harness_results(outcome: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The results of a task in the form that `lm_eval --output_path` writes, as JSON values and without single rows."""
    names = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    sections = {name: {task: outcome[name][task]} for name in names if task in outcome.get(name, {})}
    # For local files, `custom_dataset` is a function of laconic.
    config = sections["configs"][task]
    sections["configs"] = {task: {name: value for name, value in config.items() if name != "custom_dataset"}}
    return json.loads(json.dumps({**sections, "lm_eval_version": version("lm_eval")}, default=str))


PLAIN_FILTER = "none"
"""The name of the filter that does not change answers."""

Aggregation = Callable[[Sequence[Any]], float]


def score_table(samples: Sequence[Mapping[str, Any]]) -> tuple[Scores, dict[str, int]]:
    """Convert the scores of the harness to a table.

    Args:
        samples: the samples of the harness, one for each row and filter.

    Returns:
        The (rows, columns) table, and the number of columns of each metric, in order. A metric whose scores are not
        numbers has no columns (BLEU, which compares all texts together).
    """
    scores: dict[str, list[tuple[float, ...] | None]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            scores.setdefault(metric_name(metric, sample["filter"]), []).append(_to_floats(sample[metric]))
    rows = len({sample["doc_id"] for sample in samples})
    columns: list[np.ndarray] = []
    widths: dict[str, int] = {}
    for metric, lines in scores.items():
        sizes = {0 if line is None else len(line) for line in lines}
        if len(lines) == rows and len(sizes) == 1 and 0 not in sizes:
            widths[metric] = sizes.pop()
            columns.append(np.array(lines, dtype=np.float64))
    return (np.concatenate(columns, axis=1) if columns else np.empty((rows, 0))), widths


def column_metrics(widths: Mapping[str, int], aggregations: Mapping[str, Aggregation]) -> dict[str, Metric]:
    """The metrics of a table of scores from the harness.

    Args:
        widths: the number of columns of each metric, in the order of the columns.
        aggregations: the function that aggregates the scores of all rows, by the name of the metric without its filter.

    Returns:
        A function of the table for each metric.
    """
    metrics: dict[str, Metric] = {}
    start = 0
    for name, width in widths.items():
        metrics[name] = _metric(start, width, aggregations[name.partition(",")[0]])
        start += width
    return metrics


def metric_name(metric: str, filter: str) -> str:
    """The name of a metric in the harness's results.

    Args:
        metric: the name of the metric without its filter.
        filter: the name of the filter of answers; "none" is left out.

    Example:
        >>> metric_name("exact_match", "strict-match"), metric_name("acc", "none")
        ('exact_match,strict-match', 'acc')
    """
    return metric if filter == PLAIN_FILTER else f"{metric},{filter}"


def _metric(start: int, width: int, aggregation: Aggregation) -> Metric:
    def metric(table: Scores) -> float:
        if width == 1:
            return float(aggregation(table[:, start].tolist()))
        return float(aggregation([tuple(line) for line in table[:, start : start + width].tolist()]))

    return metric


def _to_floats(score: Any) -> tuple[float, ...] | None:
    parts = score if isinstance(score, (tuple, list)) else (score,)
    return tuple(float(part) for part in parts) if all(isinstance(part, (Real, np.bool_)) for part in parts) else None
