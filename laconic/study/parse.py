"""YAML in, `Study` out. Every mistake is one sentence that begins with its place, `study.axes.keep[2]`."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from laconic.compress import Step
from laconic.errors import UserError, must_be, unknown
from laconic.recipe.building import build, mapping_of
from laconic.recipe.overrides import put_all
from laconic.recipe.parse import steps_from
from laconic.study.axes import axis_values
from laconic.study.schema import OTHERS, Label, Study, Value
from laconic.yaml_loader import text_of

ROOT = "study"


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study in a YAML file, with each `key=value` of `overrides` put in place.

    Models and recipes that it names are looked for beside it first.

    Raises:
        UserError: the file cannot be read, or what it says is no study.
    """
    return parse_study(text_of(path, "study"), path, overrides)


def parse_study(text: str, path: Path, overrides: Sequence[str] = ()) -> Study:
    """`read_study` of a `text` that was read from `path` already."""
    spelled = mapping_of(text, f"The study '{path}'", "axes")
    put_all(spelled, overrides, ROOT)
    return study_from(spelled, path.parent)


def study_from(spelled: Mapping[str, Any], folder: Path) -> Study:
    """The study that a mapping spells, as read from YAML; paths in it may be beside it, in `folder`.

    Raises:
        UserError: an unknown or missing key, or a value out of range; the sentence begins with its place.
    """
    known = [field.name for field in fields(Study)]
    for key in spelled:
        if key not in known:
            raise UserError(f"{ROOT}.{key}: {unknown('key', str(key), known)}")
    values = dict(spelled)
    axes = _mapping(values.get("axes"), f"{ROOT}.axes", "axes, each with a list of values")
    values["axes"] = {name: axis_values(name, line, f"{ROOT}.axes.{name}", folder) for name, line in axes.items()}
    _check_axes(values["axes"])
    values["include"] = tuple(
        _included(line, f"{ROOT}.include[{index}]", values["axes"], folder)
        for index, line in enumerate(_list(values.get("include"), f"{ROOT}.include"))
    )
    values["exclude"] = tuple(
        _excluded(line, f"{ROOT}.exclude[{index}]", (values["axes"], *values["include"]))
        for index, line in enumerate(_list(values.get("exclude"), f"{ROOT}.exclude"))
    )
    if values.get("prepare") is not None:
        values["prepare"] = _preparations(values["prepare"], [values["axes"], *values["include"]])
    if isinstance(values.get("targets"), str):
        values["targets"] = [values["targets"]]
    if values.get("targets") == []:
        raise must_be(f"{ROOT}.targets", "at least one group or glob", [])
    if isinstance(values.get("label_order"), Mapping):
        _check_orders(values["label_order"], [values["axes"], *values["include"]])
    return build(Study, {name: value for name, value in values.items() if value is not None}, ROOT)


def _check_axes(axes: Mapping[str, tuple[Value, ...]]) -> None:
    for name in ("model", "seed"):
        if name == "model" and name not in axes and "recipe" not in axes:
            raise UserError(f"{ROOT}.axes.model is missing; name at least one model.")
    if ("method" in axes) == ("recipe" in axes):
        raise UserError(f"{ROOT}.axes must have either the axis method or the axis recipe; got {', '.join(axes)}.")


def _check_orders(orders: Mapping[Any, Any], grids: Sequence[Mapping[str, tuple[Value, ...]]]) -> None:
    """Raise UserError where one is of a model that the study has not: it would be passed over in silence."""
    models = dict.fromkeys(str(value.label) for grid in grids for value in grid.get("model", ()))
    for model in orders:
        if str(model) not in models:
            raise UserError(f"{ROOT}.label_order: {unknown('model', str(model), models, 'This study has')}")


def _preparations(spelled: object, grids: Sequence[Mapping[str, tuple[Value, ...]]]) -> dict[str, tuple[Step, ...]]:
    """The steps for each task by its label; a list is for all of them, and an empty one leaves the model as it is."""
    place = f"{ROOT}.prepare"
    if not isinstance(spelled, Mapping):
        return {OTHERS: steps_from(spelled, place)} if spelled != [] else {}
    tasks = dict.fromkeys(str(value.label) for grid in grids for value in grid.get("task", ()))
    if not tasks:
        raise must_be(place, "a list of steps, where the study has no axis task", dict(spelled))
    for task in spelled:
        if task not in (*tasks, OTHERS):
            raise UserError(f"{place}: {unknown('task', str(task), (*tasks, OTHERS), 'This study has')}")
    return {task: steps_from(steps, f"{place}.{task}") if steps else () for task, steps in spelled.items()}


def _mapping(spelled: object, place: str, holds: str) -> Mapping[str, Any]:
    if spelled is None:
        raise UserError(f"{place} is missing; give it a value.")
    if not isinstance(spelled, Mapping) or not spelled:
        raise must_be(place, f"a mapping of {holds}", spelled)
    return spelled


def _list(spelled: object, place: str) -> list[Any]:
    if spelled is None:
        return []
    if not isinstance(spelled, (list, tuple)):
        raise must_be(place, "a list of mappings from axes to values", spelled)
    return list(spelled)


def _included(
    line: object, place: str, axes: Mapping[str, tuple[Value, ...]], folder: Path
) -> dict[str, tuple[Value, ...]]:
    """The values on each axis that is named; those that the axis has already are meant by their label."""
    points = {}
    for name, spelled in _mapping(line, place, "axes and values").items():
        _check_named(name, place, (axes,))
        lines = spelled if isinstance(spelled, (list, tuple)) else [spelled]
        by_label = {value.label: value for value in axes[name]}
        points[name] = tuple(
            by_label[one]
            if isinstance(one, (str, int, float)) and one in by_label
            else axis_values(name, [one], f"{place}.{name}", folder)[0]
            for one in lines
        )
    return points


def _excluded(line: object, place: str, grids: tuple[Mapping[str, Any], ...]) -> dict[str, tuple[Label, ...]]:
    points: dict[str, tuple[Label, ...]] = {}
    for name, spelled in _mapping(line, place, "axes and values").items():
        _check_named(name, place, grids[:1])
        labels = list(dict.fromkeys(value.label for grid in grids for value in grid.get(name, ())))
        wanted = tuple(spelled) if isinstance(spelled, (list, tuple)) else (spelled,)
        for label in wanted:
            if label not in labels:
                raise UserError(f"{place}.{name}: {unknown('value', str(label), map(str, labels))}")
        points[name] = wanted
    return points


def _check_named(name: str, place: str, grids: tuple[Mapping[str, Any], ...]) -> None:
    if name not in grids[0]:
        raise UserError(f"{place}: {unknown('axis', str(name), grids[0], owner='This study has')}")
