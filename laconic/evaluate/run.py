"""The whole evaluation: tasks, cost, and, against the original, what was lost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError, must_be
from laconic.evaluate.conditions import Conditions
from laconic.evaluate.contamination import check_apart, made_with, shared_rows
from laconic.evaluate.cost import Cost, measure_cost
from laconic.evaluate.eval_task import EvalTask, Judged
from laconic.evaluate.fidelity import Fidelity, compared
from laconic.evaluate.intervals import Interval, interval
from laconic.evaluate.paired import Difference, difference
from laconic.evaluate.reference import References
from laconic.evaluate.score_cache import keeping, versions
from laconic.evaluate.tasks import wanted
from laconic.model import LanguageModel
from laconic.progress import Track, silent
from laconic.runtime import serve

SEED = 0
"""Of the resampling and of the masks."""

Figures = dict[str, dict[str, Interval]]
Differences = dict[str, dict[str, Difference]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """results:  task → metric → figure; `settings` has what each depends on.
    original:    the same figures of the model compared with, and its cost.
    fidelity:    to that model; `difference` is results minus its results, beside what these rows could show of it.
    """

    results: Figures
    settings: dict[str, dict[str, Any]]
    cost: Cost | None
    original: Figures | None = None
    original_cost: Cost | None = None
    fidelity: Fidelity | None = None
    difference: Differences | None = None

    def to_json(self) -> dict[str, Any]:
        """What `laconic evaluate --json` prints; sections that were not asked for are left out."""
        sections: dict[str, Any] = {
            "results": _plain(self.results),
            "settings": self.settings,
            "cost": self.cost and self.cost.to_json(),
            "fidelity": self.fidelity and {**_said(asdict(self.fidelity)), "versions": versions()},
            "difference": None if self.difference is None else _plain(self.difference),
            "least_p": None if self.difference is None else _each(self.difference, lambda change: change.least_p),
            "detectable": None if self.difference is None else _each(self.difference, lambda change: change.detectable),
            "original": None
            if self.original is None
            else {
                "results": _plain(self.original),
                "cost": self.original_cost and self.original_cost.to_json(),
            },
        }
        return {name: section for name, section in sections.items() if section is not None}


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    against: LanguageModel | None = None,
    cost: bool | Conditions = True,
    compare_cost: bool = True,
    resume: bool = False,
    references: References | None = None,
    track: Track = silent,
) -> Evaluation:
    """Judge `lm` on the dev split of each task (its first `limit` rows), measure its cost, and compare it.

    `cost` says too under which conditions: both models are judged and timed in the runtime that it names. Without
    `compare_cost` that of `against` is not measured.

    The rows for fidelity are those of the task `fidelity:SOURCE`, else of the first task (of LAMA and BLiMP up to 1,000
    sentences); without any task only the cost is measured. Where it is known what the models were made with, the
    settings of each task say how many of its rows are rows of that too. With `resume`, tasks that an earlier run has
    finished are not judged again, where model, rows and versions are the same; for models that hold nothing which their
    configuration and their numbers do not tell. Evaluations that are given the same `references` ask one original once.

    Raises:
        UserError: an unknown task, no data for it, the very file that a model was calibrated on, a model that is not
            one for it, NaN predictions, or nothing asked.
    """
    if not tasks and not cost:
        raise UserError("No task was given; name one, like glue/sst2 or perplexity:builtin:pydoc.")
    if limit is not None and limit < 1:
        raise must_be("limit", "at least 1 row", limit)
    asked = wanted(tasks, compared=against is not None)
    calibration = made_with(*(model.source for model in (lm, against) if model is not None))
    check_apart(asked.sources, calibration)
    for judge in asked.judges.values():
        judge.refuse(lm)
    corpora = {name: judge.corpus(limit) for name, judge in asked.judges.items()}
    rows = asked.rows_to_compare(corpora, limit)
    under = Conditions.of(cost)
    service = serve(lm, under.runtime)
    # What is kept was judged in torch.
    resume = resume and service.lm is lm
    ours = _judged(service.lm, asked.judges, corpora, resume, track)
    evaluation = {
        "results": _figures(ours),
        "settings": {
            name: _settings(corpora[name].source, judged) | _seen(corpora[name], calibration)
            for name, judged in ours.items()
        },
        "cost": measure_cost(lm, None, under.batch, under.length, service=service, track=track) if cost else None,
    }
    if against is None:
        return Evaluation(**evaluation)
    other = serve(against, under.runtime)
    theirs = _judged(other.lm, asked.judges, corpora, resume, track)
    reference = None if rows is None else (references or References()).of(other.lm, rows, SEED)
    return Evaluation(
        **evaluation,
        original=_figures(theirs),
        original_cost=measure_cost(against, None, under.batch, under.length, service=other, track=track)
        if cost and compare_cost
        else None,
        fidelity=None if reference is None else compared(service.lm, reference, track),
        difference={name: _differences(name, ours[name], theirs[name]) for name in ours},
    )


def _judged(
    lm: LanguageModel, judges: Mapping[str, EvalTask], corpora: Mapping[str, Corpus], resume: bool, track: Track
) -> dict[str, Judged]:
    if resume and judges:
        judged = keeping(lm)
        return {name: judged(judge, corpora[name], track) for name, judge in judges.items()}
    return {name: judge.judge(lm, corpora[name], track) for name, judge in judges.items()}


def _figures(judged: dict[str, Judged]) -> Figures:
    return {
        name: {metric: interval(of, one.table, SEED) for metric, of in one.metrics.items()}
        for name, one in judged.items()
    }


def _differences(name: str, ours: Judged, theirs: Judged) -> dict[str, Difference]:
    if len(ours.table) != len(theirs.table) or ours.rows != theirs.rows:
        raise UserError(f"The models cannot be compared on '{name}': their tokenizers leave out different rows.")
    return {metric: difference(of, ours.table, theirs.table, SEED) for metric, of in ours.metrics.items()}


def _settings(source: str, judged: Judged) -> dict[str, Any]:
    fixed = {"source": source, "split": "dev", "rows": len(judged.table), "seed": SEED}
    return {**fixed, **judged.settings, "versions": versions()}


def _seen(corpus: Corpus, calibration: Sequence[str]) -> dict[str, Any]:
    return {"calibration_rows": shared_rows(corpus, calibration)} if calibration else {}


def _said(figures: dict[str, Any]) -> dict[str, Any]:
    """Without what there is not."""
    return {name: figure for name, figure in figures.items() if figure is not None}


def _plain(figures: Figures | Differences) -> dict[str, Any]:
    return {task: {name: figure.to_json() for name, figure in metrics.items()} for task, metrics in figures.items()}


def _each(changes: Differences, value: Callable[[Difference], float | None]) -> dict[str, Any]:
    return {task: {name: value(change) for name, change in metrics.items()} for task, metrics in changes.items()}
