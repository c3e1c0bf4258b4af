"""A worker of a study measures one cell after another, and keeps the model and the statistics that cells share."""

import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from filelock import FileLock
from safetensors import SafetensorError

from laconic.cache import cache_folder
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.calibrate.sources import read
from laconic.compress import Step, solver_cache
from laconic.errors import UserError
from laconic.evaluate import ReferenceCache, evaluate
from laconic.evaluate.tasks import standalone_tasks
from laconic.methods import Method
from laconic.model import LanguageModel, load
from laconic.progress import Track, silent
from laconic.recipe.flow import apply_steps
from laconic.recipe.run import extra_files, run
from laconic.store import file_bytes, save
from laconic.study.cells import (
    DONE,
    MODELS,
    Cell,
    dense_sizes,
    failure,
    record_header,
    replace_non_finite,
    result,
)
from laconic.study.shared_folder import remove_stale_scratch, scratch_folder
from laconic.study.streamed_cell import measure_streamed

COLLECTED, REUSED = "collected", "kept"
"""Values of `statistics` in a record: statistics were collected for this cell, or read from the cache."""
PREPARED = "prepared"
ATTEMPTS = 3
"""The number of worker processes that may die on the same cell before the cell counts as failed."""
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, DatasetsError, SafetensorError,
)  # fmt: skip
"""Exceptions that make a cell fail, while the study continues. The last two have no base class among the others."""


@dataclass(frozen=True)
class WorkItem:
    """A cell for an executor, with what it shares with other cells.

    Args:
        cell: the cell to measure.
        first_steps: the first steps of all cells in its context; their statistics are collected in one pass.
    """

    cell: Cell
    first_steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Context:
    """The objects that cells with the same `context_key` share.

    Args:
        lm: the model before compression.
        data: the calibration data; None if the cells need none.
        source: the folder or hub name that the model was loaded from.
    """

    lm: LanguageModel
    data: Calibration | None
    source: str


class Worker:
    """Measures cells of a study, one at a time.

    Args:
        folder: the local folder of the study, for saved and prepared models; None if the study is at a URL and saves
            no models.
        device: the device on which models run.
        workers: the number of workers that measure cells at the same time; records contain it.
        threads: the number of CPU threads to set in torch; None does not change it.
        track: reports progress.
    """

    def __init__(
        self,
        folder: Path | None,
        device: str = "cpu",
        workers: int = 1,
        threads: int | None = None,
        track: Track = silent,
    ) -> None:
        self._folder, self._device, self._workers, self._track = folder, device, workers, track
        self._context_key: str | None = None
        self._context: Context | None = None
        self._stats: Mapping[str, LayerStats] | None = None
        self._methods: tuple[Method, ...] = ()
        self._references = ReferenceCache()
        self._failed_preparations: dict[str, str] = {}
        if threads is not None:
            torch.set_num_threads(threads)
        if folder is not None:
            remove_stale_scratch(folder)

    def measure(self, item: WorkItem) -> dict[str, Any]:
        """Measure a cell. An exception in `FAILURES` does not propagate: the record then contains the error.

        Returns:
            The record, as JSON values.
        """
        start = time.perf_counter()
        try:
            measured = {"state": DONE, **self._measure(item)}
        except FAILURES as error:
            measured = failure(type(error).__name__, str(error))
            if not isinstance(error, UserError):
                measured["error"]["traceback"] = traceback.format_exc()
        seconds = {"total": round(time.perf_counter() - start, 3), **measured.get("seconds", {})}
        header = record_header(item.cell, self._workers, self._device)
        return header | replace_non_finite(measured) | {"seconds": seconds}

    def _measure(self, item: WorkItem) -> dict[str, Any]:
        cell = item.cell
        if cell.recipe.stream:
            # Other models are not needed beside a model that is larger than memory.
            self._stats = self._context = None
            source = self._model_source(cell)
            return measure_streamed(cell, source, self._folder, self._references, self._device, self._track)
        context = self._load_context(cell)
        if cell.baseline:
            return self._evaluate(cell, context.lm, None) | dense_sizes(context.lm)
        start = time.perf_counter()
        first = cell.recipe.steps[0]
        stats, origin = None, None
        if first.collects_stats and context.data is not None:
            stats, origin = self._collect_stats(context.lm, context.data, item.first_steps)
            self._forget_other_methods(first.methods, stats)
        lm, changes = apply_steps(context.lm.copy(), cell.recipe.steps, context.data, stats)
        seconds = time.perf_counter() - start
        with scratch_folder(self._folder) as scratch:
            folder = self._model_folder(cell, scratch)
            whole_recipe = replace(cell.recipe, steps=(*cell.prepare, *cell.recipe.steps))
            save(lm, folder, extra_files(whole_recipe, changes))
            start = time.perf_counter()
            # The saved model is evaluated, not the one in memory.
            saved = load(str(folder), self._device).with_label_order(cell.recipe.label_order)
            evaluation = self._evaluate(cell, saved, context.lm)
            size = file_bytes(folder)
        return {
            **evaluation,
            **result(cell, changes, size),
            "statistics": origin,
            "seconds": {"compress": round(seconds, 3), "evaluate": round(time.perf_counter() - start, 3)},
        }

    def _load_context(self, cell: Cell) -> Context:
        if self._context is None or self._context_key != cell.context_key:
            source = self._model_source(cell)
            # The context of a baseline has no data; the cells after it usually start with the same model.
            lm = self._context.lm if self._context is not None and self._context.source == source else None
            # Free the old context first: two models with their statistics may not fit into memory.
            self._stats = self._context = None
            if lm is None:
                self._references = ReferenceCache()
                lm = load(source, self._device)
            recipe = cell.recipe
            if recipe.label_order is not None or lm.label_order is not None:
                lm = replace(lm, label_order=None).with_label_order(recipe.label_order)
            data = None if recipe.data is None else recipe.sampling.of(lm, read(recipe.data, "train"), self._track)
            self._context_key, self._context = cell.context_key, Context(lm, data, source)
        return self._context

    def _model_source(self, cell: Cell) -> str:
        """The folder or hub name of the model. The first worker that needs a prepared model creates its folder."""
        preparation, key = cell.preparation, cell.preparation_key
        if preparation is None or key is None:
            return cell.recipe.model
        assert self._folder is not None, "a study that prepares models has a folder on this machine"
        if key in self._failed_preparations:
            raise UserError(f"Its model could not be prepared: {self._failed_preparations[key]}")
        folder = self._folder / PREPARED / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.preparing"):
            if not folder.exists():
                try:
                    run(preparation, folder, track=self._track, device=self._device)
                except FAILURES as error:
                    # Remember the failure, or each of its cells would repeat the preparation.
                    self._failed_preparations[key] = str(error)
                    raise
        return str(folder)

    def _collect_stats(
        self, lm: LanguageModel, data: Calibration, steps: Sequence[Step]
    ) -> tuple[Mapping[str, LayerStats], str]:
        """The statistics that `steps` need, by the path of the layer; and whether they were collected now or before."""
        if self._stats is not None:
            return self._stats, REUSED
        kinds = frozenset().union(*(step.needs for step in steps))
        sites = {site.name: site for step in steps for site in step.sites(lm)}
        question = ["statistics", *sorted(kind.__name__ for kind in kinds), *sorted(sites)]
        key = solver_cache.key_of(lm, data, question, kinds)
        locks = cache_folder() / "statistics"
        locks.mkdir(parents=True, exist_ok=True)
        # Without a key nothing is cached, so that no process needs to wait for another.
        with nullcontext() if key is None else FileLock(locks / f".{key}.lock"):
            self._stats = solver_cache.load_entry(key, lm.device, kinds)
            if self._stats is not None:
                return self._stats, REUSED
            self._stats = collect_stats(lm, data, kinds, list(sites.values()))
            solver_cache.save_entry(key, self._stats, statistics=True)
        return self._stats, COLLECTED

    def _forget_other_methods(self, methods: Sequence[Method], stats: Mapping[str, LayerStats]) -> None:
        """Free intermediate results that other methods computed from the statistics; sizes of one method share them."""
        without_size = tuple(method.without_size() for method in methods)
        if self._methods != without_size:
            for layer in stats.values():
                layer.clear_solutions()
        self._methods = without_size

    def _evaluate(self, cell: Cell, lm: LanguageModel, original: LanguageModel | None) -> dict[str, Any]:
        evaluation = cell.recipe.evaluate
        if evaluation is None:
            return {}
        tasks = standalone_tasks(evaluation.tasks) if original is None else evaluation.tasks
        if not (tasks or evaluation.cost):
            return {}
        results = evaluate(
            lm,
            tasks,
            limit=evaluation.limit,
            against=original if tasks else None,
            cost=evaluation.cost,
            compare_cost=False,
            resume=True,
            references=self._references,
            track=self._track,
        ).to_json()
        # The baseline has its own record.
        results.pop("original", None)
        return {"evaluation": results}

    def _model_folder(self, cell: Cell, scratch: Path) -> Path:
        """The folder for the compressed model. It is removed first: a killed runner may have left one."""
        if not cell.save:
            return scratch / "model"
        assert self._folder is not None, "a study that saves models has a folder on this machine"
        folder = self._folder / MODELS / cell.key
        if folder.exists():
            shutil.rmtree(folder)
        return folder
