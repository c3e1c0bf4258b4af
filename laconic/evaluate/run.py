"""The whole evaluation: tasks, cost, and, against the original, what was lost."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from laconic.errors import UserError, must_be
from laconic.evaluate.conditions import Conditions
from laconic.evaluate.cost import Cost, measure_cost
from laconic.evaluate.fidelity import Fidelity, fidelity
from laconic.evaluate.intervals import Difference, Interval, difference, interval
from laconic.evaluate.judging import Judged
from laconic.evaluate.tasks import wanted
from laconic.model import LanguageModel
from laconic.progress import Track, silent
from laconic.runtime import serve

SEED = 0
"""Of the resampling and of the masks."""

Figures = dict[str, dict[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """results:  task → metric → figure; `settings` has what each depends on.
    original:    the same figures of the model compared with, and its cost.
    fidelity:    to that model; `difference` is results minus its results.
    """

    results: Figures
    settings: dict[str, dict[str, Any]]
    cost: Cost | None
    original: Figures | None = None
    original_cost: Cost | None = None
    fidelity: Fidelity | None = None
    difference: dict[str, dict[str, Difference]] | None = None

    def to_json(self) -> dict[str, Any]:
        """What `laconic evaluate --json` prints; sections that were not asked for are left out."""
        sections: dict[str, Any] = {
            "results": _plain(self.results),
            "settings": self.settings,
            "cost": self.cost and self.cost.to_json(),
            "fidelity": self.fidelity and {**asdict(self.fidelity), "versions": versions()},
            "difference": None if self.difference is None else _plain(self.difference),
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
    track: Track = silent,
) -> Evaluation:
    """Judge `lm` on the dev split of each task (its first `limit` rows), measure its cost, and compare it.

    `cost` says too under which conditions: both models are judged and timed in the runtime that it names.

    The rows for fidelity are those of the task `fidelity:SOURCE`, else of the first task; without any task only the
    cost is measured.

    Raises:
        UserError: an unknown task, no data for it, a model that is not one for it, NaN predictions, or nothing asked.
    """
    if not tasks and not cost:
        raise UserError("No task was given; name one, like glue/sst2 or perplexity:builtin:pydoc.")
    if limit is not None and limit < 1:
        raise must_be("limit", "at least 1 row", limit)
    asked = wanted(tasks, compared=against is not None)
    for judge in asked.judges.values():
        judge.refuse(lm.task, lm.source)
    corpora = {name: judge.corpus(limit) for name, judge in asked.judges.items()}
    rows = asked.rows_to_compare(corpora, limit)
    under = Conditions.of(cost)
    service = serve(lm, under.runtime)
    ours = {name: judge.judge(service.lm, corpora[name], track) for name, judge in asked.judges.items()}
    evaluation = {
        "results": _figures(ours),
        "settings": {name: _settings(corpora[name].source, judged) for name, judged in ours.items()},
        "cost": measure_cost(lm, None, under.batch, under.length, service=service, track=track) if cost else None,
    }
    if against is None:
        return Evaluation(**evaluation)
    other = serve(against, under.runtime)
    theirs = {name: judge.judge(other.lm, corpora[name], track) for name, judge in asked.judges.items()}
    return Evaluation(
        **evaluation,
        original=_figures(theirs),
        original_cost=measure_cost(against, None, under.batch, under.length, service=other, track=track)
        if cost
        else None,
        fidelity=None if rows is None else fidelity(service.lm, other.lm, rows, seed=SEED, track=track),
        difference={name: _differences(name, ours[name], theirs[name]) for name in ours},
    )


def versions() -> dict[str, str]:
    """Of what figures depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


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


def _plain(figures: dict[str, dict[str, Interval]] | dict[str, dict[str, Difference]]) -> dict[str, Any]:
    return {task: {name: asdict(figure) for name, figure in metrics.items()} for task, metrics in figures.items()}
