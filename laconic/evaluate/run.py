"""Evaluate a model: scores on tasks, cost, and the difference from an original model."""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError, must_be
from laconic.evaluate.contamination import calibration_sources, check_disjoint, count_shared_rows
from laconic.evaluate.cost import Conditions, Cost
from laconic.evaluate.engine_cost import EngineCost
from laconic.evaluate.eval_task import TaskResult
from laconic.evaluate.fidelity import Fidelity
from laconic.evaluate.in_turn import SEED, Job, Opener, measure_model, measure_original
from laconic.evaluate.metrics import Interval, interval
from laconic.evaluate.paired import Difference, difference
from laconic.evaluate.products import FLOAT32
from laconic.evaluate.references import ReferenceCache
from laconic.evaluate.score_cache import versions
from laconic.evaluate.tasks import select_tasks
from laconic.model import LanguageModel
from laconic.progress import Track, silent

T = TypeVar("T")
Intervals = dict[str, dict[str, Interval]]
Differences = dict[str, dict[str, Difference]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation.

    Args:
        results: the value and the interval of each metric, by task and metric.
        settings: the settings that the results depend on, by task.
        cost: the cost of the model; None if it was not measured.
        original: `results` of the original; None without an original.
        original_cost: `cost` of the original.
        fidelity: the distance from the original.
        difference: the change of each metric against the original, by task and metric.
    """

    results: Intervals
    settings: dict[str, dict[str, Any]]
    cost: Cost | EngineCost | None
    original: Intervals | None = None
    original_cost: Cost | EngineCost | None = None
    fidelity: Fidelity | None = None
    difference: Differences | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON that `laconic evaluate --json` prints; sections that were not measured are left out."""
        changes, fidelity = self.difference, self.fidelity
        sections: dict[str, Any] = {
            "results": _map(self.results, asdict),
            "settings": self.settings,
            "cost": self.cost and self.cost.to_json(),
            "fidelity": fidelity and {**_without_none(asdict(fidelity)), "versions": versions()},
            "difference": changes and _map(changes, Difference.to_json),
            "least_p": changes and _map(changes, lambda change: change.least_p),
            "detectable": changes and _map(changes, lambda change: change.detectable),
            "original": None
            if self.original is None
            else {
                "results": _map(self.original, asdict),
                "cost": self.original_cost and self.original_cost.to_json(),
            },
        }
        return _without_none(sections)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation; the fields are arguments of `evaluate`.

    Args:
        limit: the largest number of rows of each task; None for all.
        cost: whether to measure cost; or its conditions.
        compare_cost: whether to measure the cost of the original as well.
        resume: whether to use cached results.
        references: a cache of originals; None for a new one.
        context: the number of tokens in a window of perplexity; None for that of the model.
        dtype: the dtype of the matrix products of perplexity.
        track: reports progress.
    """

    limit: int | None = None
    cost: bool | Conditions = True
    compare_cost: bool = True
    resume: bool = False
    references: ReferenceCache | None = None
    context: int | None = None
    dtype: str = FLOAT32
    track: Track = silent


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    against: LanguageModel | None = None,
    cost: bool | Conditions = True,
    compare_cost: bool = True,
    resume: bool = False,
    references: ReferenceCache | None = None,
    context: int | None = None,
    dtype: str = FLOAT32,
    track: Track = silent,
) -> Evaluation:
    """Evaluate a model on tasks, measure its cost, and compare it with an original.

    Args:
        lm: the model.
        tasks: names of tasks, like `glue/sst2`. The rows for fidelity are those of `fidelity:SOURCE`, else those of the
            first task (up to 1,000 sentences of LAMA and BLiMP). If they are those of a perplexity task, both models
            are compared in its windows, in the same pass.
        limit: the largest number of rows of each task; None for the whole dev split.
        against: the original to compare with; None for no comparison.
        cost: whether to measure cost; or the conditions of the measurement, whose runtime applies to quality as well.
        compare_cost: whether to measure the cost of `against` as well.
        resume: whether to use cached results of an earlier run with the same model, rows and versions. The model must
            be fully described by its configuration and weights.
        references: a cache to share between evaluations against the same original, so that the original is run once.
        context: the number of tokens in a window of perplexity; None for that of the model, up to 2048.
        dtype: dtype of the matrix products of perplexity, and of the comparison in its windows: `float32` or
            `bfloat16`.
        track: reports progress.

    Raises:
        UserError: a task is unknown, has no data, uses the very file that a model was calibrated on, or is not for this
            kind of model; the context is too long; a prediction is NaN; or there is nothing to evaluate.
    """
    for task in select_tasks(tasks, compared=against is not None).tasks.values():
        task.check_model(lm)
    settings = EvaluationSettings(
        limit=limit,
        cost=cost,
        compare_cost=compare_cost,
        resume=resume,
        references=references,
        context=context,
        dtype=dtype,
        track=track,
    )
    return evaluate_in_turn(
        lambda: nullcontext(lm),
        None if against is None else lambda: nullcontext(against),
        tasks,
        settings,
        sources=[model.source for model in (lm, against) if model is not None],
    )


def evaluate_in_turn(
    open_model: Opener,
    open_original: Opener | None,
    tasks: Sequence[str],
    settings: EvaluationSettings,
    *,
    sources: Sequence[str],
) -> Evaluation:
    """As `evaluate`, for models that need not be in memory together.

    The original is opened first. If all that the comparison needs of it can be kept, it is closed before the model is
    opened.

    Args:
        open_model: opens the model.
        open_original: opens the original; None for no comparison.
        tasks: as in `evaluate`.
        settings: how to measure.
        sources: the names of both models, for the data that they were calibrated on.

    Raises:
        UserError: as `evaluate`.
    """
    limit, cost = settings.limit, settings.cost
    if not tasks and not cost:
        raise UserError("No task was given; name one, like glue/sst2 or perplexity:builtin:pydoc.")
    if limit is not None and limit < 1:
        raise must_be("limit", "at least 1 row", limit)
    selected = select_tasks(tasks, compared=open_original is not None, context=settings.context, dtype=settings.dtype)
    check_disjoint(selected.sources, calibration_sources(*sources))
    corpora = {name: task.load_corpus(limit) for name, task in selected.tasks.items()}
    job = Job(
        tasks=selected.tasks,
        corpora=corpora,
        rows=selected.rows_to_compare(corpora, limit) if open_original is not None else None,
        in_windows=selected.compares_in_windows,
        conditions=Conditions.of(cost),
        cost=bool(cost),
        compare_cost=bool(cost) and settings.compare_cost,
        resume=settings.resume,
        references=settings.references or ReferenceCache(),
        track=settings.track,
    )
    with ExitStack() as stack:
        original = None
        if open_original is not None:
            opened = stack.enter_context(ExitStack())
            original = measure_original(job, opened.enter_context(open_original()))
            if original.lm is None:
                opened.close()
                # Modules refer to each other in circles, and would stay in memory beside the model that is opened next.
                gc.collect()
        found = measure_model(job, stack.enter_context(open_model()), original, open_original)
    return to_evaluation(
        corpora,
        found.results,
        None if original is None else found.original,
        sources=sources,
        cost=found.cost,
        original_cost=None if original is None else original.cost,
        fidelity=found.fidelity,
    )


def to_evaluation(
    corpora: Mapping[str, Corpus],
    results: Mapping[str, TaskResult],
    original: Mapping[str, TaskResult] | None,
    *,
    sources: Sequence[str],
    cost: Cost | EngineCost | None,
    original_cost: Cost | EngineCost | None = None,
    fidelity: Fidelity | None = None,
) -> Evaluation:
    """Summarize what was measured, with intervals and changes.

    Args:
        corpora: the rows of each task.
        results: the results of the tasks.
        original: the results of the original; None without one.
        sources: the names of both models, for the data that they were calibrated on.
        cost: the cost of the model.
        original_cost: the cost of the original.
        fidelity: the distance from the original.

    Raises:
        UserError: the models were scored on different rows.
    """
    calibration = calibration_sources(*sources)
    recorded = {name: _settings(corpora[name], result, calibration) for name, result in results.items()}
    if original is None:
        return Evaluation(results=_intervals(results), settings=recorded, cost=cost)
    return Evaluation(
        results=_intervals(results),
        settings=recorded,
        cost=cost,
        original=_intervals(original),
        original_cost=original_cost,
        fidelity=fidelity,
        difference={name: _differences(name, results[name], original[name]) for name in results},
    )


def _settings(corpus: Corpus, result: TaskResult, calibration: Sequence[str]) -> dict[str, Any]:
    """The settings on which a result depends.

    Args:
        corpus: the rows of the task.
        result: the result of the task.
        calibration: the sources of the calibration data of the models.
    """
    settings = {"source": corpus.source, "split": "dev", "rows": len(result.table), "seed": SEED, **result.settings}
    settings["versions"] = versions()
    if calibration:
        settings["calibration_rows"] = count_shared_rows(corpus, calibration)
    return settings


def _intervals(results: Mapping[str, TaskResult]) -> Intervals:
    return {
        task: {name: interval(metric, result.table, SEED) for name, metric in result.metrics.items()}
        for task, result in results.items()
    }


def _differences(name: str, ours: TaskResult, theirs: TaskResult) -> dict[str, Difference]:
    if len(ours.table) != len(theirs.table) or ours.rows != theirs.rows:
        raise UserError(f"The models cannot be compared on '{name}': their tokenizers leave out different rows.")
    return {metric: difference(function, ours.table, theirs.table, SEED) for metric, function in ours.metrics.items()}


def _map(figures: Mapping[str, Mapping[str, T]], function: Callable[[T], Any]) -> dict[str, dict[str, Any]]:
    """Apply a function to the figure of each task and metric."""
    return {task: {name: function(figure) for name, figure in metrics.items()} for task, metrics in figures.items()}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
