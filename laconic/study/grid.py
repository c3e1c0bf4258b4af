"""A study as cells: the product of its axes, with what is included and without what is excluded, and the baselines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

from laconic.compress import Compress, Step
from laconic.errors import UserError
from laconic.evaluate.tasks import select_tasks
from laconic.methods import METHODS, Method
from laconic.methods.problem import placed, validated
from laconic.model import DEFAULT_TARGETS
from laconic.recipe.flow import allocation_of, serves, steps_of, takes_keep
from laconic.recipe.parse import method_or_step
from laconic.recipe.schema import Evaluation, Recipe
from laconic.recipe.steps import STEPS
from laconic.study.axes import AXES
from laconic.study.cells import Cell
from laconic.study.schema import Label, Line, Point, Study

COMMON = ("model", "task", "data", "recipe", "method", "seed")
"""Axes of which an included point takes every value where it names none; on all others it then has none."""


def cells_of(study: Study) -> list[Cell]:
    """Every cell once, each baseline before the cells that are compared with it, those that share work in a row.

    Raises:
        UserError: a cell cannot be; the sentence says which. Or an axis means nothing for any of them.
    """
    cells: dict[str, Cell] = {}
    for point in _points(study):
        cell = _cell(study, point)
        cells.setdefault(cell.key, cell)
    if not cells:
        raise UserError("study.exclude leaves no cell; leave out fewer of them.")
    _check_axes_matter(study, cells)
    return _in_order(list(cells.values()))


def _in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Neighbours share a model, its statistics, and what a method works out of them; their baselines come first."""
    ways = list(dict.fromkeys(map(_way, cells)))
    models: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        models.setdefault(cell.recipe.model, {}).setdefault(cell.ground, []).append(cell)
    ordered: dict[str, Cell] = {}
    for here in (neighbours for grounds in models.values() for neighbours in grounds.values()):
        for cell in (*(cell.original for cell in here), *sorted(here, key=lambda cell: ways.index(_way(cell)))):
            ordered.setdefault(cell.key, cell)
    return list(ordered.values())


def _way(cell: Cell) -> Label:
    return cell.axes.get("method", cell.axes.get("recipe"))


def _points(study: Study) -> Iterator[Point]:
    common = {name: values for name, values in study.axes.items() if name in COMMON}
    grids = [study.axes, *({**common, **more} for more in study.include)]
    for grid in grids:
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            if not any(_agrees(point, left_out) for left_out in study.exclude):
                yield point


def _agrees(point: Point, pattern: Mapping[str, tuple[Label, ...]]) -> bool:
    return all(name in point and point[name].label in labels for name, labels in pattern.items())


def _cell(study: Study, point: Point) -> Cell:
    where = ", ".join(f"{name} {value.label}" for name, value in point.items())
    try:
        recipe, idle = _recipe(study, point)
    except UserError as error:
        raise placed(error, f"study.axes at {where}") from error
    axes = {name: None if name in idle or name not in point else point[name].label for name in study.axes}
    return Cell(axes=axes, recipe=recipe, prepare=_preparation(study, point), save=study.save)


def _preparation(study: Study, point: Point) -> tuple[Step, ...]:
    return study.prepares(point["task"].label if "task" in point else None)


def _recipe(study: Study, point: Point) -> tuple[Recipe, set[str]]:
    """The recipe at a point, and the axes that mean nothing there."""
    means = {name: value.means for name, value in point.items()}
    given: Recipe | None = means.get("recipe")
    parameters = {name: value for name, value in means.items() if name not in AXES}
    spelled: Sequence[Line] = means.get("method", ())
    lines = [_built(line, parameters) for line in spelled] if given is None else given.steps
    parts, idle = _with_parameters((*lines, *means.get("then", ())), parameters)
    lines, then = parts[: len(lines)], [part for part in parts[len(lines) :] if isinstance(part, Step)]
    own = {name: means[name] for name in ("keep", "allocate", "targets") if name in means}
    steps, silent = _set(lines, own) if given is not None else _sized(study, lines, own)
    steps = (*steps, *then)
    data = means.get("data", study.data) or _source(means.get("task")) or (None if given is None else given.data)
    base = Recipe(model=means.get("model", ""), steps=()) if given is None else given
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
        evaluate=Evaluation(tasks=tasks, cost=study.cost, limit=study.limit),
    )
    return recipe, idle | silent


def _source(task: str | None) -> str | None:
    """Where the rows of a task come from, of which a training split may calibrate."""
    if task is None:
        return None
    ((_, source),) = select_tasks((task,), compared=True).sources
    return source


def _built(line: Line, parameters: Mapping[str, object]) -> Method | Step:
    """The method or step, with those of the parameters that are its own: without them it may not be one yet."""
    kind = next(kind for kind in (*METHODS, *STEPS) if kind.name == line.name)
    own = {name: value for name, value in parameters.items() if name in {field.name for field in fields(kind)}}
    return method_or_step({line.name: {**line.parameters, **own}}, line.place)


def _sized(study: Study, lines: Sequence[Method | Step], own: Mapping[str, Any]) -> tuple[tuple[Step, ...], set[str]]:
    """The steps that methods stand for, and the axes among `own` that say nothing of any of them."""
    keep = own.get("keep") if any(takes_keep(line) for line in lines) else None
    idle = set[str]() if any(isinstance(line, Method) for line in lines) else set(own) - {"keep"}
    if "keep" in own and keep is None:
        idle.add("keep")
    targets = own.get("targets", study.targets) or DEFAULT_TARGETS
    allocate = own.get("allocate", study.allocate)
    if not any(serves(allocate, line) for line in lines):
        allocate = "uniform"
        idle |= own.keys() & {"allocate"}
    return steps_of(lines, keep, allocate, tuple(targets), allow_dense=study.allow_dense), idle


def _set(lines: Sequence[Method | Step], own: Mapping[str, Any]) -> tuple[tuple[Step, ...], set[str]]:
    """The steps of a recipe with `own` in every `compress` among them, and what there is none for."""
    steps = tuple(line for line in lines if isinstance(line, Step))
    methods = [step.method for step in steps if isinstance(step, Compress)]
    changed = tuple(
        replace(step, **_shared_out(own, step.method, methods)) if isinstance(step, Compress) else step
        for step in steps
    )
    return changed, set[str]() if methods else set(own)


def _shared_out(own: Mapping[str, Any], method: Method, methods: Sequence[Method]) -> Mapping[str, Any]:
    """`own` for one of several methods, where a way to share a budget out may be meant for another of them."""
    return {**own, "allocate": allocation_of(method, own["allocate"], methods)} if "allocate" in own else own


def _with_parameters(
    parts: Sequence[Method | Step], parameters: Mapping[str, object]
) -> tuple[tuple[Method | Step, ...], set[str]]:
    """Every parameter set wherever there is one of its name, and the names that none has."""
    idle = {name for name in parameters if not any(_has(part, name) for part in parts)}
    for name in parameters.keys() - idle:
        parts = [_with_parameter(part, name, parameters[name]) for part in parts]
    return tuple(parts), idle


def _with_parameter(part: Any, name: str, value: object) -> Any:
    """The step, or the method in it, with the parameter set wherever there is one of this name."""
    changes = {
        field.name: _with_parameter(inner, name, value)
        for field in fields(part)
        if isinstance(inner := getattr(part, field.name), Method)
    }
    if name in {field.name for field in fields(part)}:
        changes[name] = value
    if not changes:
        return part
    values = {field.name: getattr(part, field.name) for field in fields(part)} | changes
    return validated(type(part), values, f"study.axes.{name} in {part.name}")


def _has(part: Method | Step, name: str) -> bool:
    """Whether it, or a method within it, has the parameter."""
    return any(
        field.name == name or (isinstance(inner := getattr(part, field.name), Method) and _has(inner, name))
        for field in fields(part)
    )


def _check_axes_matter(study: Study, cells: Mapping[str, Cell]) -> None:
    for name in study.axes:
        if name not in ("model", "task", "recipe", "method", "then", "seed") and all(
            cell.axes[name] is None for cell in cells.values()
        ):
            raise UserError(f"study.axes.{name} means nothing for any of the methods; remove it.")
