"""The cells of a study: the product of its axes and the included points, minus the excluded points, plus baselines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

from laconic.compress import Compress, Step
from laconic.errors import UserError, add_place
from laconic.evaluate.tasks import select_tasks
from laconic.methods import Method
from laconic.model import DEFAULT_TARGETS
from laconic.recipe.flow import allocation_for, methods_in, supports, to_steps
from laconic.recipe.parse import find_method_or_step, method_or_step
from laconic.recipe.schema import EvaluationConfig, Recipe
from laconic.study.axes import AXES, AxisValue, Label, MethodLine
from laconic.study.cells import Cell
from laconic.study.schema import Study
from laconic.typed import construct

COMMON_AXES = ("model", "task", "data", "recipe", "method", "seed")
"""Axes that an included point need not name: it is then included for each of their values.

An included point has no value on other axes that it does not name.
"""
Point = Mapping[str, AxisValue]


def cells_of(study: Study) -> list[Cell]:
    """All cells of a study, without duplicates.

    Args:
        study: as `read_study` returns it.

    Returns:
        The cells in the order in which they are measured: baselines before the cells that are compared with them, and
        cells that share a model, its statistics or a method's intermediate results next to each other.

    Raises:
        UserError: a cell is impossible (the message names it), no cell is left, or an axis applies to no cell.

    Example:
        >>> from pathlib import Path
        >>> from laconic.study.schema import study_from
        >>> study = study_from({"axes": {"model": ["m"], "method": ["svd"], "keep": [0.5, 0.25]}, "data": "d"}, Path())
        >>> [(cell.axes["method"], cell.axes["keep"]) for cell in cells_of(study)]
        [('original', None), ('svd', 0.5), ('svd', 0.25)]
    """
    cells: dict[str, Cell] = {}
    for point in _points(study):
        cell = _cell(study, point)
        cells.setdefault(cell.key, cell)
    if not cells:
        raise UserError("study.exclude excludes all cells; exclude fewer.")
    for name in study.axes:
        if name not in ("model", "task", "recipe", "method", "then", "seed") and all(
            cell.axes[name] is None for cell in cells.values()
        ):
            raise UserError(f"study.axes.{name} applies to none of the methods; remove it.")
    return _sort(list(cells.values()))


def _sort(cells: Sequence[Cell]) -> list[Cell]:
    """Sort cells by model and context. Within a context the baselines come first, then the cells method by method."""
    methods = list(dict.fromkeys(map(_method_label, cells)))
    contexts: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        contexts.setdefault(cell.recipe.model, {}).setdefault(cell.context_key, []).append(cell)
    ordered: dict[str, Cell] = {}
    for group in (group for of_model in contexts.values() for group in of_model.values()):
        by_method = sorted(group, key=lambda cell: methods.index(_method_label(cell)))
        for cell in (*(cell.original for cell in group), *by_method):
            ordered.setdefault(cell.key, cell)
    return list(ordered.values())


def _method_label(cell: Cell) -> Label:
    return cell.axes.get("method", cell.axes.get("recipe"))


def _points(study: Study) -> Iterator[Point]:
    common = {name: values for name, values in study.axes.items() if name in COMMON_AXES}
    for grid in (study.axes, *({**common, **included} for included in study.include)):
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            excluded = (
                all(name in point and point[name].label in labels for name, labels in pattern.items())
                for pattern in study.exclude
            )
            if not any(excluded):
                yield point


def _cell(study: Study, point: Point) -> Cell:
    try:
        recipe, ignored = _recipe(study, point)
    except UserError as error:
        where = ", ".join(f"{name} {value.label}" for name, value in point.items())
        raise add_place(error, f"study.axes at {where}") from error
    axes = {name: None if name in ignored or name not in point else point[name].label for name in study.axes}
    return Cell(axes=axes, recipe=recipe, prepare=_preparation(study, point), save=study.save)


def _preparation(study: Study, point: Point) -> tuple[Step, ...]:
    return study.preparation_of(point["task"].label if "task" in point else None)


def _recipe(study: Study, point: Point) -> tuple[Recipe, set[str]]:
    """The recipe at a point of the grid, and the names of the axes that do not apply to it."""
    means = {name: value.means for name, value in point.items()}
    base: Recipe | None = means.get("recipe")
    parameters = {name: value for name, value in means.items() if name not in AXES}
    spelled: Sequence[MethodLine] = means.get("method", ())
    lines = [_build(line, parameters) for line in spelled] if base is None else base.steps
    parts, ignored = _set_parameters((*lines, *means.get("then", ())), parameters)
    lines, then = parts[: len(lines)], [part for part in parts[len(lines) :] if isinstance(part, Step)]
    settings = {name: means[name] for name in ("keep", "allocate", "targets") if name in means}
    steps, ignored_settings = (
        _override_compress(lines, settings) if base is not None else _to_steps(study, lines, settings)
    )
    steps = (*steps, *then)
    base = base or Recipe(model=means.get("model", ""), steps=())
    data = means.get("data", study.data) or _task_data(means.get("task")) or base.data
    tasks = (means["task"],) if "task" in means else study.tasks or (base.evaluate.tasks if base.evaluate else ())
    recipe = replace(
        base,
        model=means.get("model", base.model),
        data=data if any(step.needs_data for step in (*_preparation(study, point), *steps)) else None,
        samples=study.samples or base.samples,
        seed=means.get("seed", base.seed),
        max_length=study.max_length or base.max_length,
        batch_size=study.batch_size or base.batch_size,
        labels=study.labels or base.labels,
        label_order=study.order_of(point["model"].label if "model" in point else None) or base.label_order,
        steps=steps,
        evaluate=EvaluationConfig(tasks=tasks, cost=study.cost, limit=study.limit),
        stream=base.stream if study.stream is None else study.stream,
    )
    return recipe, ignored | ignored_settings


def _task_data(task: str | None) -> str | None:
    """The data source of a task; its training split is the default calibration data."""
    if task is None:
        return None
    ((_, source),) = select_tasks((task,), compared=True).sources
    return source


def _build(line: MethodLine, parameters: Mapping[str, object]) -> Method | Step:
    """Create a method or step with its own parameters and those from other axes."""
    kind = find_method_or_step(line.name)
    assert kind is not None, "axes contain only existing names"
    names = {field.name for field in fields(kind)}
    own = {name: value for name, value in parameters.items() if name in names}
    return method_or_step({line.name: {**line.parameters, **own}}, line.place)


def _to_steps(
    study: Study, lines: Sequence[Method | Step], settings: Mapping[str, Any]
) -> tuple[tuple[Step, ...], set[str]]:
    """Wrap methods in `compress` steps; also return the names of the axes in `settings` that apply to no line."""
    methods = methods_in(lines)
    keep = None if all(method.has_size for method in methods) else settings.get("keep")
    ignored = set[str]() if methods else set(settings) - {"keep"}
    if "keep" in settings and keep is None:
        ignored.add("keep")
    targets = settings.get("targets", study.targets) or DEFAULT_TARGETS
    allocate = settings.get("allocate", study.allocate)
    if not any(supports(allocate, method) for method in methods):
        allocate = "uniform"
        ignored |= settings.keys() & {"allocate"}
    return to_steps(lines, keep, allocate, tuple(targets), allow_dense=study.allow_dense), ignored


def _override_compress(
    lines: Sequence[Method | Step], settings: Mapping[str, Any]
) -> tuple[tuple[Step, ...], set[str]]:
    """Apply `settings` to each `compress` step of a recipe; also return the names of settings that were not used."""
    steps = tuple(line for line in lines if isinstance(line, Step))
    methods = [step.method for step in steps if isinstance(step, Compress)]

    def override(step: Step) -> Step:
        if not isinstance(step, Compress):
            return step
        if "allocate" not in settings:
            return replace(step, **settings)
        # An allocation may apply to only some of the methods.
        return replace(step, **{**settings, "allocate": allocation_for(step.method, settings["allocate"], methods)})

    return tuple(map(override, steps)), set[str]() if methods else set(settings)


def _set_parameters(
    parts: Sequence[Method | Step], parameters: Mapping[str, object]
) -> tuple[tuple[Method | Step, ...], set[str]]:
    """Set parameters in all methods and steps that have them; also return the names of parameters that none has."""
    ignored: set[str] = set()
    for name, value in parameters.items():
        changed = [_set_parameter(part, name, value) for part in parts]
        if all(new is part for new, part in zip(changed, parts, strict=True)):
            ignored.add(name)
        parts = changed
    return tuple(parts), ignored


def _set_parameter(part: Any, name: str, value: object) -> Any:
    """A copy with the parameter set, also in nested methods; `part` itself if nothing has the parameter."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    inner = {field: method for field, method in values.items() if isinstance(method, Method)}
    changes = {
        field: changed
        for field, method in inner.items()
        if (changed := _set_parameter(method, name, value)) is not method
    }
    if name in values:
        changes[name] = value
    return construct(type(part), values | changes, f"study.axes.{name} in {part.name}") if changes else part
