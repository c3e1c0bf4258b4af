"""A worker's bench: the model that it is on, its data and statistics, and cell after cell measured there."""

import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from filelock import FileLock
from safetensors import SafetensorError

from laconic.allocate import plan_text, plan_to_config
from laconic.cache import cache_folder
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.calibrate.corpus import read
from laconic.compress import Compress, solver_cache
from laconic.errors import UserError
from laconic.evaluate import ReferenceCache, evaluate
from laconic.evaluate.tasks import standalone_tasks
from laconic.methods import Method
from laconic.model import LanguageModel, load
from laconic.progress import Track, silent
from laconic.recipe.flow import Changes, apply_steps
from laconic.recipe.run import pictures_of, run
from laconic.recipe.schema import Recipe
from laconic.recipe.write import key_of, write_recipe
from laconic.store import Beside, file_bytes, save
from laconic.study.cells import Cell
from laconic.study.ledger import DONE
from laconic.study.records import blank, failed, finite
from laconic.study.scratch import clear_away, scratch

COLLECTED, KEPT = "collected", "kept"
MODELS, PREPARED = "models", "prepared"
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, DatasetsError, SafetensorError,
)  # fmt: skip
"""What a cell may end with and the others go on; the last ones are kin of none of those before."""


@dataclass(frozen=True)
class Task:
    """A cell to measure; `shared` are the first steps of all cells on its ground, which are surveyed together."""

    cell: Cell
    shared: tuple[Compress, ...] = ()


@dataclass(frozen=True)
class SharedContext:
    """What neighbouring cells share: the model that they compress, and the data."""

    lm: LanguageModel
    data: Calibration | None
    source: str


class Worker:
    """Measures cells of the study in `place`, a folder of this machine or None; one `of_workers` that do."""

    def __init__(self, place: Path | None, device: str = "cpu", of_workers: int = 1, track: Track = silent) -> None:
        self._place = place
        self._device = device
        self._workers = of_workers
        self._track = track
        self._name: str | None = None
        self._ground: SharedContext | None = None
        self._known: Mapping[str, LayerStats] | None = None
        self._method: Method | None = None
        self._references = ReferenceCache()
        self._unprepared: dict[str, str] = {}
        if place is not None:
            clear_away(place)

    def measure(self, task: Task) -> dict[str, Any]:
        """The record of a cell; where it fails, the cause is in it."""
        start = time.perf_counter()
        try:
            found = {"state": DONE, **self._measured(task)}
        except FAILURES as error:
            found = failed(type(error).__name__, str(error))
            if not isinstance(error, UserError):
                found["error"]["traceback"] = traceback.format_exc()
        seconds = {"total": round(time.perf_counter() - start, 3), **found.get("seconds", {})}
        return blank(task.cell, self._workers, self._device) | finite(found) | {"seconds": seconds}

    def _measured(self, task: Task) -> dict[str, Any]:
        cell = task.cell
        ground = self._stand_on(cell)
        if cell.baseline:
            return self._judged(cell, ground.lm, None) | _sizes_of(ground.lm)
        start = time.perf_counter()
        first = cell.recipe.steps[0]
        known, how = (None, None)
        if isinstance(first, Compress) and first.surveys and ground.data is not None:
            known, how = self._surveyed(ground, task.shared)
            self._make_room(first.method, known)
        lm, changes = apply_steps(ground.lm.copy(), cell.recipe.steps, ground.data, known)
        seconds = time.perf_counter() - start
        with scratch(self._place) as empty:
            folder = self._folder(cell, empty)
            # Of the model that was prepared the recipe begins where that did.
            whole = replace(cell.recipe, steps=(*cell.prepare, *cell.recipe.steps))
            save(lm, folder, _beside(whole, changes))
            start = time.perf_counter()
            # What was saved is judged, not what is in memory.
            saved = load(str(folder), self._device).with_label_order(cell.recipe.label_order)
            judged = self._judged(cell, saved, ground.lm)
            size = file_bytes(folder)
        return {
            **judged,
            "bytes": changes.nbytes,
            "dense_bytes": changes.dense_nbytes,
            "file_bytes": size,
            "sites": plan_to_config(changes.plan),
            "dropped": [{stack: list(blocks) for stack, blocks in step.items()} for step in changes.dropped],
            "predicted_losses": list(changes.predicted_losses),
            "statistics": how,
            "output": f"{MODELS}/{cell.key}" if cell.save else None,
            "seconds": {"compress": round(seconds, 3), "evaluate": round(time.perf_counter() - start, 3)},
        }

    def _stand_on(self, cell: Cell) -> SharedContext:
        name = cell.ground
        if self._ground is None or self._name != name:
            source = self._source(cell)
            # A baseline reads no data, and what follows it most often begins with the same model.
            lm = self._ground.lm if self._ground is not None and self._ground.source == source else None
            # Two models and what is known of both may be more than there is room for.
            self._known = self._ground = None
            if lm is None:
                self._references = ReferenceCache()
                lm = load(source, self._device)
            if cell.recipe.label_order is not None or lm.label_order is not None:
                lm = replace(lm, label_order=None).with_label_order(cell.recipe.label_order)
            self._name, self._ground = name, SharedContext(lm, self._data(cell.recipe, lm), source)
        return self._ground

    def _data(self, recipe: Recipe, lm: LanguageModel) -> Calibration | None:
        if recipe.data is None:
            return None
        return recipe.sampling.of(lm, read(recipe.data, "train"), self._track)

    def _source(self, cell: Cell) -> str:
        """Where the model that the cell begins with is; where it has to be prepared, the first that comes does it."""
        preparation = cell.preparation
        if preparation is None:
            return cell.recipe.model
        assert self._place is not None, "a study that prepares models has a folder on this machine"
        key = key_of(preparation)
        if key in self._unprepared:
            raise UserError(f"Its model could not be prepared: {self._unprepared[key]}")
        folder = self._place / PREPARED / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.preparing"):
            if not folder.exists():
                try:
                    run(preparation, folder, track=self._track, device=self._device)
                except FAILURES as error:
                    # Each of its cells would try again, for minutes.
                    self._unprepared[key] = str(error)
                    raise
        return str(folder)

    def _surveyed(self, ground: SharedContext, steps: Sequence[Compress]) -> tuple[Mapping[str, LayerStats], str]:
        """What all `steps` need to know of the matrices that any of them aims at, and whether it was measured now."""
        if self._known is not None:
            return self._known, KEPT
        assert ground.data is not None
        kinds = frozenset().union(*(step.needs for step in steps))
        sites = {site.name: site for step in steps for site in step.sites(ground.lm)}
        question = ["survey", *sorted(kind.__name__ for kind in kinds), *sorted(sites)]
        key = solver_cache.key_of(ground.lm, ground.data, question)
        locks = cache_folder() / "surveys"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f".{key}.lock"):
            self._known = solver_cache.recall(key, ground.lm.device)
            if self._known is not None:
                return self._known, KEPT
            self._known = collect_stats(ground.lm, ground.data, kinds, list(sites.values()))
            solver_cache.keep(key, self._known, statistics=True)
        return self._known, COLLECTED

    def _make_room(self, method: Method, known: Mapping[str, LayerStats]) -> None:
        """What one method has worked out of every matrix serves its other sizes, and no other method."""
        if self._method != method.without_size():
            for what in known.values():
                what.worked_out.clear()
        self._method = method.without_size()

    def _judged(self, cell: Cell, lm: LanguageModel, original: LanguageModel | None) -> dict[str, Any]:
        wanted = cell.recipe.evaluate
        if wanted is None:
            return {}
        tasks = standalone_tasks(wanted.tasks) if original is None else wanted.tasks
        if not (tasks or wanted.cost):
            return {}
        compared = original if tasks else None
        found = evaluate(
            lm,
            tasks,
            limit=wanted.limit,
            against=compared,
            cost=wanted.cost,
            compare_cost=False,
            resume=True,
            references=self._references,
            track=self._track,
        ).to_json()
        # The original's figures are its own record's.
        found.pop("original", None)
        return {"evaluation": found}

    def _folder(self, cell: Cell, empty: Path) -> Path:
        """Where the model is saved; one that a killed run has saved before its record was written makes room."""
        if not cell.save:
            return empty / "model"
        assert self._place is not None, "a study that saves models has a folder on this machine"
        folder = self._place / MODELS / cell.key
        if folder.exists():
            shutil.rmtree(folder)
        return folder


def _sizes_of(lm: LanguageModel) -> dict[str, Any]:
    """Of a model as it is: its matrices, and its file."""
    dense = sum(rows * columns for rows, columns in (site.shape for site in lm.sites())) * lm.dtype.itemsize
    return {"bytes": dense, "dense_bytes": dense, "file_bytes": lm.size()[1]}


def _beside(recipe: Recipe, changes: Changes) -> Beside:
    plans = tuple(plan_text(plan) for plan in changes.plans if plan)
    return Beside(recipe=write_recipe(recipe), plan=plans, files={**changes.files, **pictures_of(changes)})
