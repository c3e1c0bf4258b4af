"""About how long the cells of a study will take, from those that are done and from one pass of each model."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from laconic.evaluate.tasks import select_tasks
from laconic.evaluate.timing import latency
from laconic.model import load
from laconic.study.cells import Cell
from laconic.study.ledger import DONE, Record

BATCH, LENGTH, RUNS = 8, 64, 2
OVERHEAD = 2.0
"""Seconds to save a model, load it and read the rows."""
SURVEY = 4.0
"""Passes that a row of calibration takes: forward, backward, and the sums."""


def seconds_of(cells: Sequence[Cell], records: Iterable[Record]) -> dict[str, float]:
    """Seconds of each cell, by key: what finished ones of its model and method took, else by passes of its model."""
    done = [record for record in records if record["state"] == DONE]
    passes: dict[str, float] = {}
    return {cell.key: _from_done(cell, done) or _from_passes(cell, passes) for cell in cells}


def _from_done(cell: Cell, done: Sequence[Record]) -> float | None:
    alike = [record for record in done if _agree(record["axes"], cell.axes, ("model", "task"))]
    closer = [record for record in alike if _agree(record["axes"], cell.axes, ("method", "recipe", "then"))]
    chosen = [record for record in closer or alike if record.get("baseline") is cell.baseline]
    return median(record["seconds"]["total"] for record in chosen) if chosen else None


def _agree(one: Mapping[str, object], other: Mapping[str, object], names: Sequence[str]) -> bool:
    return all(one.get(name) == other.get(name) for name in names)


def _from_passes(cell: Cell, passes: dict[str, float]) -> float:
    """By the time of a row in one pass; steps that train say how much longer they take with their first record only."""
    model = cell.recipe.model
    if model not in passes:
        passes[model] = latency(load(model), BATCH, LENGTH, runs=RUNS).median / BATCH
    evaluation = cell.recipe.evaluate
    rows = 0
    if evaluation is not None:
        selected = select_tasks(evaluation.tasks, compared=True)
        corpora = {name: task.load_corpus(evaluation.limit) for name, task in selected.tasks.items()}
        rows = sum(len(corpus.examples) for corpus in corpora.values())
        if selected.fidelity is not None and not cell.baseline:
            compared = selected.rows_to_compare(corpora, evaluation.limit)
            rows += 0 if compared is None else len(compared.examples)
    # With the original beside it, for the distance between the two.
    judged = rows * (1 if cell.baseline else 3)
    calibrated = 0 if cell.baseline or cell.recipe.data is None else cell.recipe.samples * SURVEY
    return OVERHEAD + passes[model] * (judged + calibrated)
