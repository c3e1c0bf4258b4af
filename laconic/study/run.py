"""A study from its cells to its ledger: what is missing is claimed, measured and written, until nothing is missing."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from laconic.calibrate.corpus import Corpus, read
from laconic.compress import Compress
from laconic.errors import Notice, UserError
from laconic.evaluate.tasks import load_corpus
from laconic.methods.problem import placed
from laconic.model import LanguageModel, with_tokenizers
from laconic.progress import Track, silent
from laconic.recipe.labels import check_labels
from laconic.recipe.order import check_order
from laconic.recipe.run import check_recipe
from laconic.store import skeleton
from laconic.study.cells import Cell
from laconic.study.executors import Executor
from laconic.study.ledger import DONE, FAILED, Ledger, Record, Strange
from laconic.study.mlflow_logger import MlflowLogger
from laconic.study.worker import COLLECTED, Task

PATIENCE = 2.0
"""Seconds between two looks at cells that another runner has."""


@dataclass(frozen=True)
class Summary:
    """What a run of a study did.

    measured:  cells that this run finished, failed ones among them.
    found:     cells that were finished before, or by another runner meanwhile.
    failed:    records of all cells that failed, whenever that was.
    surveys:   how many times this run collected statistics.
    aside:     files that were in the place of records and were none; their cells were measured again.
    strange:   other files in the ledger that are no records.
    seconds:   of this run; `within` its cells, summed over them.
    """

    measured: int
    found: int
    failed: tuple[Record, ...]
    surveys: int
    aside: tuple[Strange, ...]
    strange: tuple[Strange, ...]
    seconds: float
    within: float


def check_cells(cells: Sequence[Cell]) -> None:
    """Raise UserError where a cell cannot be done; no weights are read, each model's structure is looked at once."""
    structures, models = _models_of(cells), dict[str, LanguageModel]()
    # Neighbouring cells have the same data.
    read_once = lru_cache(maxsize=1)(read)
    rows_once = lru_cache(maxsize=4)(load_corpus)
    for cell in cells:
        source = cell.recipe.model
        try:
            model = models[source] = models.get(source) or with_tokenizers(structures[source])
            if cell.prepare:
                places = [f"study.prepare[{index}].{step.name}" for index, step in enumerate(cell.prepare)]
                model = _prepared(cell, model.with_label_order(cell.recipe.label_order), places, read_once)
            check_recipe(cell.recipe, model, compared=True, read=read_once, rows=rows_once)
        except UserError as error:
            raise placed(error, _where(cell)) from error


def _models_of(cells: Sequence[Cell]) -> dict[str, LanguageModel]:
    """The structure of every model by its name; the last is looked at before the data of the first is read."""
    models: dict[str, LanguageModel] = {}
    for cell in cells:
        if cell.recipe.model not in models:
            try:
                models[cell.recipe.model] = skeleton(cell.recipe.model)
            except UserError as error:
                raise placed(error, _where(cell)) from error
    return models


def _where(cell: Cell) -> str:
    return "study at " + ", ".join(f"{name} {label}" for name, label in cell.axes.items() if label is not None)


def _prepared(cell: Cell, lm: LanguageModel, places: Sequence[str], read: Callable[..., Corpus]) -> LanguageModel:
    source = cell.recipe.data
    check_labels(lm, cell.prepare, places, cell.recipe.sampling, lambda: read(source, "train"))
    return check_order(lm, cell.prepare, places)


def run_study(
    cells: Sequence[Cell],
    ledger: Ledger,
    executor: Executor,
    *,
    retry: bool = False,
    logbook: MlflowLogger | None = None,
    track: Track = silent,
) -> Summary:
    """Measure every cell that has no record yet, and with `retry` those that failed.

    Another runner may be at the same ledger: no cell is measured twice, and this returns when all are finished. Every
    record that is there or is made goes into the `logbook`.

    Raises:
        UserError: a record cannot be written, or what is in its place cannot be put aside. What is finished stays.
    """
    start = time.perf_counter()
    for cell in cells if retry else ():
        found = ledger.find(cell.key)
        if isinstance(found, dict) and found["state"] == FAILED:
            ledger.forget(cell.key)
    aside = _put_aside(cells, ledger)
    if logbook is not None:
        for cell in cells:
            if isinstance(found := ledger.find(cell.key), dict):
                logbook.add(found)
    there = ledger.keys()
    missing = [cell for cell in cells if cell.key not in there]
    measured, surveys, within = 0, 0, 0.0
    bar = iter(track(missing, "Cells"))
    with ledger.leases.kept():
        for record in _finished(missing, cells, ledger, executor):
            next(bar, None)
            if record is not None:
                measured += 1
                if logbook is not None:
                    logbook.add(record)
                surveys += record.get("statistics") == COLLECTED
                within += record["seconds"]["total"] if record["state"] == DONE else 0.0
    next(bar, None)
    ledger.tidy()
    own = {cell.key for cell in cells}
    records, strange = ledger.all()
    return Summary(
        measured=measured,
        found=len(cells) - measured,
        failed=tuple(record for record in records if record["key"] in own and record["state"] == FAILED),
        surveys=surveys,
        aside=aside,
        strange=tuple(strange),
        seconds=time.perf_counter() - start,
        within=within,
    )


def _put_aside(cells: Iterable[Cell], ledger: Ledger) -> tuple[Strange, ...]:
    """What stands in the place of a record and is none: a machine that went down, or a disk, has left half of it."""
    moved = tuple(filter(None, (ledger.put_aside(cell.key) for cell in cells)))
    for file in moved:
        warnings.warn(
            f"A cell is measured again: what was in the place of its record is none ({file.reason}), "
            f"and is now '{file.name}'.",
            Notice,
            stacklevel=3,
        )
    return moved


def _finished(
    missing: Sequence[Cell], every: Sequence[Cell], ledger: Ledger, executor: Executor
) -> Iterator[Record | None]:
    """Each record of `missing` once it is there; None where another runner has written it."""
    left = {cell.key: cell for cell in missing}
    shared = _shared(every)
    originals = {cell.key: cell.original.key for cell in missing}
    while left:
        for record in executor.run(_claimed(left, originals, shared, ledger)):
            ledger.write(record)
            del left[str(record["key"])]
            yield record
        for key in left.keys() & ledger.keys():
            del left[key]
            yield None
        if left:
            time.sleep(PATIENCE)


def _shared(cells: Iterable[Cell]) -> dict[str, tuple[Compress, ...]]:
    """By their ground, the first steps of all cells there: their statistics are collected together."""
    found: dict[str, tuple[Compress, ...]] = {}
    for cell in cells:
        first = cell.recipe.steps[0] if cell.recipe.steps else None
        here = found.get(cell.ground, ())
        if isinstance(first, Compress) and first.surveys and first not in here:
            found[cell.ground] = (*here, first)
    return found


def _claimed(
    left: Mapping[str, Cell], originals: Mapping[str, str], shared: Mapping[str, tuple[Compress, ...]], ledger: Ledger
) -> Iterator[Task | None]:
    """A task for each cell of which the lease can be had at the moment when a worker is free for it.

    None where all that are left wait for their originals: what these scored is read, and not measured again.
    """
    waiting = dict(left)
    while waiting:
        unknown = {key for key in set(originals.values()) & left.keys() if ledger.find(key) is None}
        cell = next((cell for cell in waiting.values() if cell.baseline or originals[cell.key] not in unknown), None)
        if cell is None:
            yield None
            continue
        del waiting[cell.key]
        if ledger.claim(cell.key):
            yield Task(cell, shared.get(cell.ground, ()))
