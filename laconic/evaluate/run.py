"""Evaluate a model: scores on tasks, cost, and the difference from an original model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError, must_be
from laconic.evaluate.contamination import calibration_sources, check_disjoint, count_shared_rows
from laconic.evaluate.cost import Conditions, Cost, measure_cost
from laconic.evaluate.eval_task import EvalTask, TaskResult
from laconic.evaluate.fidelity import Fidelity, ReferenceCache, compare_to_reference
from laconic.evaluate.metrics import Interval, interval
from laconic.evaluate.paired import Difference, difference
from laconic.evaluate.score_cache import caching_evaluator, versions
from laconic.evaluate.tasks import select_tasks
from laconic.model import LanguageModel
from laconic.progress import Track, silent
from laconic.runtime import serve

SEED = 0
"""The random seed of the bootstrap and of masked positions."""

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
    cost: Cost | None
    original: Intervals | None = None
    original_cost: Cost | None = None
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
    track: Track = silent,
) -> Evaluation:
    """Evaluate a model on tasks, measure its cost, and compare it with an original.

    Args:
        lm: the model.
        tasks: names of tasks, like `glue/sst2`. The rows for fidelity are those of `fidelity:SOURCE`, else those of the
            first task (up to 1,000 sentences of LAMA and BLiMP).
        limit: the largest number of rows of each task; None for the whole dev split.
        against: the original to compare with; None for no comparison.
        cost: whether to measure cost; or the conditions of the measurement, whose runtime applies to quality as well.
        compare_cost: whether to measure the cost of `against` as well.
        resume: whether to use cached results of an earlier run with the same model, rows and versions. The model must
            be fully described by its configuration and weights.
        references: a cache to share between evaluations against the same original, so that the original is run once.
        track: reports progress.

    Raises:
        UserError: a task is unknown, has no data, uses the very file that a model was calibrated on, or is not for this
            kind of model; a prediction is NaN; or there is nothing to evaluate.
    """
    if not tasks and not cost:
        raise UserError("No task was given; name one, like glue/sst2 or perplexity:builtin:pydoc.")
    if limit is not None and limit < 1:
        raise must_be("limit", "at least 1 row", limit)
    selected = select_tasks(tasks, compared=against is not None)
    calibration = calibration_sources(*(model.source for model in (lm, against) if model is not None))
    check_disjoint(selected.sources, calibration)
    for task in selected.tasks.values():
        task.check_model(lm)
    corpora = {name: task.load_corpus(limit) for name, task in selected.tasks.items()}
    rows = selected.rows_to_compare(corpora, limit)
    conditions = Conditions.of(cost)
    service = serve(lm, conditions.runtime)
    # Only results in torch are cached.
    resume = resume and service.lm is lm
    ours = _evaluate_tasks(service.lm, selected.tasks, corpora, resume, track)
    evaluation = {
        "results": _intervals(ours),
        "settings": {name: _settings(corpora[name], result, calibration) for name, result in ours.items()},
        "cost": measure_cost(lm, None, conditions.batch, conditions.length, service=service, track=track)
        if cost
        else None,
    }
    if against is None:
        return Evaluation(**evaluation)
    other = serve(against, conditions.runtime)
    theirs = _evaluate_tasks(other.lm, selected.tasks, corpora, resume, track)
    reference = None if rows is None else (references or ReferenceCache()).get(other.lm, rows, SEED)
    return Evaluation(
        **evaluation,
        original=_intervals(theirs),
        original_cost=measure_cost(against, None, conditions.batch, conditions.length, service=other, track=track)
        if cost and compare_cost
        else None,
        fidelity=None if reference is None else compare_to_reference(service.lm, reference, track),
        difference={name: _differences(name, ours[name], theirs[name]) for name in ours},
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


def _evaluate_tasks(
    lm: LanguageModel, tasks: Mapping[str, EvalTask], corpora: Mapping[str, Corpus], resume: bool, track: Track
) -> dict[str, TaskResult]:
    if resume and tasks:
        evaluate_or_recall = caching_evaluator(lm)
        return {name: evaluate_or_recall(task, corpora[name], track) for name, task in tasks.items()}
    return {name: task.evaluate(lm, corpora[name], track) for name, task in tasks.items()}


def _intervals(results: dict[str, TaskResult]) -> Intervals:
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
