"""A cell of a study (a recipe with a label on each axis), and the parts of its record that do not need a run."""

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from typing import Any

import torch

from laconic.allocate import plan_to_config
from laconic.calibrate.passes import describe_machine as describe_device
from laconic.compress import Step
from laconic.errors import LONGEST_SENTENCE, truncate
from laconic.evaluate.score_cache import versions
from laconic.evaluate.tasks import find_task
from laconic.fingerprint import hash_class, hash_classes
from laconic.formats.autotune import machine
from laconic.model import LanguageModel
from laconic.recipe.flow import CombinedOutcome
from laconic.recipe.schema import Recipe, key_of, spell_recipe, spell_step
from laconic.registry import plugins
from laconic.study.axes import Label

VERSION = 1
"""The version of the layout of records."""
DONE = "done"
"""The state of a cell with a result."""
FAILED = "failed"
"""The state of a cell that ended with an error."""
MODELS = "models"
"""The folder of the models that a study keeps, in its own folder."""
ORIGINAL, TRAINING, COMBINATION = "original", "training", "combination"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid.

    Args:
        axes: its label on each axis; None on an axis that does not apply to it.
        recipe: the model before preparation, the steps of compression and the evaluation.
        prepare: steps that run before the recipe, such as fine-tuning. Cells with the same model and preparation share
            the prepared model.
        baseline: whether the cell evaluates the prepared model without compressing it. Other cells are compared with
            this result.
        save: whether to keep the compressed model.

    Example:
        >>> cell = Cell(axes={"model": "m", "method": "svd"}, recipe=Recipe(model="m", steps=()))
        >>> dict(cell.original.axes), len(cell.key)
        ({'model': 'm', 'method': 'original'}, 16)
    """

    axes: Mapping[str, Label]
    recipe: Recipe
    prepare: tuple[Step, ...] = ()
    baseline: bool = False
    save: bool = False

    @cached_property
    def key(self) -> str:
        """The name of its record: a hash of its recipe and its preparation, in 16 hexadecimal digits.

        If the recipe uses a method, step or task of a plug-in, the hash includes the code of the plug-in, so that the
        cell is measured again after an edit.
        """
        spelled = [spell_recipe(self.recipe), [spell_step(step) for step in self.prepare]]
        spelled += _plugin_code(self.recipe, self.prepare)
        return hashlib.sha256(json.dumps(spelled, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def preparation(self) -> Recipe | None:
        """The recipe that produces the prepared model; None if there are no steps of preparation."""
        return replace(self.recipe, steps=self.prepare, evaluate=None) if self.prepare else None

    @property
    def preparation_key(self) -> str | None:
        """The name of the folder of the prepared model; None if there are no steps of preparation."""
        preparation = self.preparation
        return preparation and "-".join((key_of(preparation), *_plugin_code(preparation)))

    @property
    def context_key(self) -> str:
        """A key that is equal for cells with the same prepared model and calibration data, which share statistics."""
        return key_of(replace(self.recipe, steps=self.prepare, evaluate=None))

    @property
    def original(self) -> "Cell":
        """The baseline that the cell is compared with. It has data and a seed only if there is a preparation."""
        axes = {name: None for name in self.axes} | {name: self.axes.get(name) for name in ("model", "task")}
        axes["method" if "method" in axes else "recipe"] = ORIGINAL
        recipe = replace(self.recipe, steps=())
        if self.prepare:
            axes["seed"] = self.axes.get("seed")
        else:
            fresh = Recipe(model=recipe.model, steps=(), label_order=recipe.label_order, stream=recipe.stream or None)
            recipe = replace(fresh, evaluate=recipe.evaluate)
        labels = {name: label for name, label in axes.items() if name in self.axes}
        return Cell(axes=labels, recipe=recipe, prepare=self.prepare, baseline=True)

    @property
    def family(self) -> str:
        """The family of its methods and steps, by which reports group cells; `combination` for several families."""
        if self.baseline:
            return ORIGINAL
        families = frozenset[str]().union(*(step.families for step in self.recipe.steps))
        return COMBINATION if len(families) > 1 else next(iter(families), TRAINING)

    def describe(self) -> str:
        """The name of the cell in error messages, such as "study at model m, method svd"."""
        return "study at " + ", ".join(f"{name} {label}" for name, label in self.axes.items() if label is not None)


def result(cell: Cell, changes: CombinedOutcome, size: int | None) -> dict[str, Any]:
    """The part of the record of a compressed model that describes the model.

    Args:
        cell: the cell.
        changes: the results of its steps.
        size: bytes of the saved weights.
    """
    return {
        "bytes": changes.nbytes,
        "dense_bytes": changes.dense_nbytes,
        "file_bytes": size,
        "sites": plan_to_config(changes.plan),
        "dropped": [{stack: list(blocks) for stack, blocks in step.items()} for step in changes.dropped],
        "predicted_losses": list(changes.predicted_losses),
        "output": f"{MODELS}/{cell.key}" if cell.save else None,
    }


def dense_sizes(lm: LanguageModel) -> dict[str, Any]:
    """The bytes of the matrices and of the saved weights of an uncompressed model, whose weights need not be loaded."""
    dense = sum(rows * columns for rows, columns in (site.shape for site in lm.sites())) * lm.dtype.itemsize
    return {"bytes": dense, "dense_bytes": dense, "file_bytes": lm.size()[1]}


def _plugin_code(recipe: Recipe, prepare: tuple[Step, ...] = ()) -> list[str]:
    """One hash of the code of all plug-ins that a recipe and its preparation use; an empty list if they use none."""
    classes = {*_classes(recipe), *_classes(prepare)}
    if recipe.evaluate is not None:
        added = {plugin.name for plugin in plugins("laconic.tasks")}
        names = [name for name in recipe.evaluate.tasks if re.split("[/:]", name, maxsplit=1)[0].lower() in added]
        classes |= {type(find_task(name)) for name in names}
    outside = [kind for kind in classes if hash_class(kind) != ""]
    return [hash_classes(outside) or "no source"] if outside else []


def _classes(value: object) -> Iterator[type]:
    """The classes of all dataclasses in a value: steps, methods and the methods inside them."""
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    for part in value if isinstance(value, (tuple, list)) else ():
        yield from _classes(part)


def record_header(cell: Cell, workers: int, device: str = "cpu") -> dict[str, Any]:
    """The part of a cell's record that does not depend on its result.

    Args:
        cell: the cell.
        workers: the number of cells that were measured at the same time.
        device: the device on which each was measured.

    Returns:
        JSON values: key, labels, recipe, machine, versions and time.
    """
    # For the CPU, `machine` names the processor already.
    accelerator = {} if device == "cpu" else {"device": describe_device(torch.device(device))["device"]}
    return {
        "version": VERSION,
        "key": cell.key,
        "baseline": cell.baseline,
        "axes": dict(cell.axes),
        "family": cell.family,
        "recipe": spell_recipe(cell.recipe),
        "machine": {**machine(), **accelerator, "system": platform.system()},
        "versions": versions(),
        "workers": workers,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def failure(kind: str, message: str) -> dict[str, Any]:
    """The part of the record of a failed cell that describes the error: its class and its message on one line.

    Example:
        >>> failure("MemoryError", "")
        {'state': 'failed', 'error': {'kind': 'MemoryError', 'sentence': 'MemoryError'}}
    """
    sentence = " ".join(truncate(message, LONGEST_SENTENCE).split())
    return {"state": FAILED, "error": {"kind": kind, "sentence": sentence or kind}}


def replace_non_finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinities in a record by None, as JSON has no such numbers; `not_finite` lists them by path.

    Example:
        >>> replace_non_finite({"loss": {"kl": [1.0, float("nan")]}})
        {'loss': {'kl': [1.0, None]}, 'not_finite': {'loss.kl.1': 'nan'}}
    """
    replaced: dict[str, str] = {}

    def copy(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {name: copy(part, f"{path}.{name}" if path else str(name)) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [copy(part, f"{path}.{index}") for index, part in enumerate(value)]
        if isinstance(value, float) and not isfinite(value):
            replaced[path] = str(value)
            return None
        return value

    finite = copy(record, "")
    return {**finite, "not_finite": replaced} if replaced else dict(record)
