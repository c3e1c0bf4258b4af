"""Run a study: check all cells, then claim and measure each cell without a record, and write its record."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.sources import read
from laconic.compress import Step
from laconic.errors import Notice, UserError, add_place
from laconic.evaluate.tasks import load_corpus, select_tasks
from laconic.evaluate.timing import latency
from laconic.model import LanguageModel, load, with_tokenizers
from laconic.progress import Track, silent
from laconic.recipe.checks import check_labels, check_order, check_recipe
from laconic.store import skeleton
from laconic.study.cells import DONE, FAILED, Cell
from laconic.study.executors import Executor
from laconic.study.ledger import InvalidFile, Ledger, Record
from laconic.study.mlflow_logger import MlflowLogger
from laconic.study.streamed_cell import check_streamed
from laconic.study.worker import COLLECTED, WorkItem

POLL_SECONDS = 2.0
"""Seconds between two checks for the records of cells that other runners are measuring."""
BATCH, LENGTH, RUNS = 8, 64, 2
"""The batch size, length and number of runs of the forward pass that is timed for an estimate."""
OVERHEAD_SECONDS = 2.0
"""The estimated seconds for saving a model, loading it and reading data."""
STATS_PASSES = 4.0
"""The estimated cost of a calibration row in forward passes: forward, backward and the sums of statistics."""
COMPARED_PASSES = 3
"""The estimated cost of a row of a task in forward passes, if the model is compared with the original."""


@dataclass(frozen=True)
class Summary:
    """The result of a run of a study.

    Args:
        measured: the number of cells that this run finished, including failed ones.
        found: the number of cells that an earlier run or another runner finished.
        failed: the records of all failed cells, from this run and from earlier runs.
        statistics_collected: how often this run collected statistics.
        moved: invalid files with the names of records; they were moved, and their cells were measured again.
        invalid: other files in the ledger that are not valid records.
        seconds: the duration of this run.
        cell_seconds: the sum of the durations of the cells that it measured.
    """

    measured: int
    found: int
    failed: tuple[Record, ...]
    statistics_collected: int
    moved: tuple[InvalidFile, ...]
    invalid: tuple[InvalidFile, ...]
    seconds: float
    cell_seconds: float


def check_cells(cells: Sequence[Cell]) -> None:
    """Check that every cell can be measured, without reading weights.

    Args:
        cells: the result of `cells_of`. The structure of all models is checked before any data are read.

    Raises:
        UserError: a cell cannot be measured; the message begins with its labels.
    """
    structures, models = dict[str, LanguageModel](), dict[str, LanguageModel]()
    for cell in cells:
        if cell.recipe.model not in structures:
            try:
                structures[cell.recipe.model] = skeleton(cell.recipe.model)
            except UserError as error:
                raise add_place(error, cell.describe()) from error
    # Consecutive cells usually have the same data.
    read_cached = lru_cache(maxsize=1)(read)
    rows_cached = lru_cache(maxsize=4)(load_corpus)
    for cell in cells:
        source = cell.recipe.model
        try:
            model = models[source] = models.get(source) or with_tokenizers(structures[source])
            if cell.prepare:
                model = _dry_run(cell, model.with_label_order(cell.recipe.label_order), read_cached)
            changed = check_recipe(cell.recipe, model, compared=True, read=read_cached, rows=rows_cached)
            if cell.recipe.stream:
                check_streamed(cell, changed)
        except UserError as error:
            raise add_place(error, cell.describe()) from error


def _dry_run(cell: Cell, lm: LanguageModel, read: Callable[..., Corpus]) -> LanguageModel:
    """The structure of the prepared model, after checking the steps that prepare it."""
    places = [f"study.prepare[{index}].{step.name}" for index, step in enumerate(cell.prepare)]
    structures = check_order(lm, cell.prepare, places)
    check_labels(structures, cell.prepare, places, cell.recipe.sampling, lambda: read(cell.recipe.data, "train"))
    return structures[-1]


def run_study(
    cells: Sequence[Cell],
    ledger: Ledger,
    executor: Executor,
    *,
    retry: bool = False,
    logger: MlflowLogger | None = None,
    track: Track = silent,
) -> Summary:
    """Measure every cell that has no record yet; return when all cells are finished.

    Other runners may work on the same ledger at the same time; no cell is measured twice.

    Args:
        cells: the result of `cells_of`, after `check_cells`.
        ledger: the ledger for the records.
        executor: measures the cells.
        retry: whether to measure failed cells again.
        logger: logs all records in MLflow, including those of earlier runs; None for no logging.
        track: reports progress.

    Returns:
        The counts, failed records and times of the run.

    Raises:
        UserError: a record cannot be written, or an invalid file cannot be moved. Finished cells are kept.
    """
    start = time.perf_counter()
    moved: list[InvalidFile] = []
    for cell in cells:
        if (file := ledger.move_invalid(cell.key)) is not None:
            moved.append(file)
            sentence = f"the file of its record was invalid ({file.reason}), and is now '{file.name}'"
            warnings.warn(f"A cell is measured again: {sentence}.", Notice, stacklevel=2)
        record = ledger.read(cell.key)
        if retry and isinstance(record, dict) and record["state"] == FAILED:
            ledger.remove(cell.key)
        elif logger is not None and isinstance(record, dict):
            logger.add(record)
    finished = ledger.keys()
    missing = [cell for cell in cells if cell.key not in finished]
    measured, statistics_collected, cell_seconds = 0, 0, 0.0
    bar = iter(track(missing, "Cells"))
    with ledger.leases.renewing():
        for record in _measure(missing, cells, ledger, executor):
            next(bar, None)
            if record is not None:
                measured += 1
                if logger is not None:
                    logger.add(record)
                statistics_collected += record.get("statistics") == COLLECTED
                cell_seconds += record["seconds"]["total"] if record["state"] == DONE else 0.0
    next(bar, None)
    ledger.remove_stale_leases()
    keys = {cell.key for cell in cells}
    records, invalid = ledger.all()
    return Summary(
        measured=measured,
        found=len(cells) - measured,
        failed=tuple(record for record in records if record["key"] in keys and record["state"] == FAILED),
        statistics_collected=statistics_collected,
        moved=tuple(moved),
        invalid=tuple(invalid),
        seconds=time.perf_counter() - start,
        cell_seconds=cell_seconds,
    )


def _measure(
    missing: Sequence[Cell], cells: Sequence[Cell], ledger: Ledger, executor: Executor
) -> Iterator[Record | None]:
    """Measure the `missing` cells, and yield their records; None for a cell that another runner finished."""
    left = {cell.key: cell for cell in missing}
    first_steps = _first_steps(cells)
    originals = {cell.key: cell.original.key for cell in missing}
    while left:
        for record in executor.run(_claim(left, originals, first_steps, ledger)):
            ledger.write(record)
            del left[str(record["key"])]
            yield record
        for key in left.keys() & ledger.keys():
            del left[key]
            yield None
        if left:
            time.sleep(POLL_SECONDS)


def _first_steps(cells: Iterable[Cell]) -> dict[str, tuple[Step, ...]]:
    """For each context, the first steps of its cells; the statistics for all of them are collected in one pass."""
    steps: dict[str, tuple[Step, ...]] = {}
    for cell in cells:
        first = cell.recipe.steps[0] if cell.recipe.steps else None
        others = steps.get(cell.context_key, ())
        if first is not None and first.collects_stats and first not in others:
            steps[cell.context_key] = (*others, first)
    return steps


def _claim(
    left: Mapping[str, Cell],
    originals: Mapping[str, str],
    first_steps: Mapping[str, tuple[Step, ...]],
    ledger: Ledger,
) -> Iterator[WorkItem | None]:
    """Yield the cells that this runner can claim at the moment when a worker is free.

    Yields None while all remaining cells wait for their baselines, whose scores they need.
    """
    waiting = dict(left)
    while waiting:
        unfinished = {key for key in set(originals.values()) & left.keys() if ledger.read(key) is None}
        cell = next((cell for cell in waiting.values() if cell.baseline or originals[cell.key] not in unfinished), None)
        if cell is None:
            yield None
            continue
        del waiting[cell.key]
        if ledger.claim(cell.key):
            yield WorkItem(cell, first_steps.get(cell.context_key, ()))


def estimate_seconds(cells: Sequence[Cell], records: Iterable[Record]) -> dict[str, float]:
    """Estimate the duration of each cell.

    Args:
        cells: the cells to estimate.
        records: finished cells. The estimate is the median over records of the same model, task and method. If there
            is none, the model is loaded, and the estimate is based on the time of a forward pass.

    Returns:
        Seconds, by the key of the cell.
    """
    done = [record for record in records if record["state"] == DONE]
    passes: dict[str, float] = {}
    return {cell.key: _from_records(cell, done) or _from_passes(cell, passes) for cell in cells}


def _from_records(cell: Cell, done: Sequence[Record]) -> float | None:
    def agrees(record: Record, *names: str) -> bool:
        return all(record["axes"].get(name) == cell.axes.get(name) for name in names)

    of_model = [record for record in done if agrees(record, "model", "task")]
    of_method = [record for record in of_model if agrees(record, "method", "recipe", "then")]
    similar = [record for record in of_method or of_model if record.get("baseline") is cell.baseline]
    return median(record["seconds"]["total"] for record in similar) if similar else None


def _from_passes(cell: Cell, passes: dict[str, float]) -> float:
    """Estimate from the seconds of a forward pass per row, cached in `passes` by model. Training is not included."""
    model = cell.recipe.model
    if model not in passes:
        passes[model] = latency(load(model), BATCH, LENGTH, runs=RUNS).median / BATCH
    evaluation = cell.recipe.evaluate
    rows = 0
    if evaluation is not None:
        tasks = select_tasks(evaluation.tasks, compared=True)
        corpora = {name: task.load_corpus(evaluation.limit) for name, task in tasks.tasks.items()}
        rows = sum(len(corpus.examples) for corpus in corpora.values())
        if tasks.fidelity is not None and not cell.baseline:
            compared = tasks.rows_to_compare(corpora, evaluation.limit)
            rows += 0 if compared is None else len(compared.examples)
    evaluated = rows * (1 if cell.baseline else COMPARED_PASSES)
    calibrated = 0 if cell.baseline or cell.recipe.data is None else cell.recipe.samples * STATS_PASSES
    return OVERHEAD_SECONDS + passes[model] * (evaluated + calibrated)
