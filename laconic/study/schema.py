"""The dataclass of a study, and its parser from YAML. Error messages begin with the place of the mistake."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from laconic.calibrate import Labels
from laconic.compress import Step
from laconic.errors import UserError, must_be, unknown
from laconic.evaluate import Conditions
from laconic.recipe.building import apply_overrides, build, parse_mapping
from laconic.recipe.parse import steps_from
from laconic.recipe.schema import Count, Name
from laconic.study.axes import AxisValue, Label, axis_values, to_list
from laconic.yaml_loader import read_text

ROOT = "study"
OTHERS = "others"
"""The key in `prepare` for all tasks that are not named there."""
Axes = Mapping[str, tuple[AxisValue, ...]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of recipes, with the settings that all of its cells share.

    Args:
        title: the heading of the report.
        axes: the values of each axis, by name. The cells are the product of the axes.
        include: additional cells, given by their values on some axes. If an item does not name one of the axes model,
            task, data, recipe, method and seed, it is included for each value of that axis. It has no value on other
            axes that it does not name.
        exclude: cells to leave out. An item excludes a cell that has one of its values on each axis that it names.
        data: the source of the calibration texts. None for the training split of the task, in a study with the axis
            `task`, or for the data of the cell's recipe.
        samples: the number of calibration texts, as in a recipe. For this field, `max_length`, `batch_size` and
            `labels`, None means the value in the cell's recipe, or the default of recipes.
        max_length: the largest number of tokens in a calibration text.
        batch_size: calibration texts in a batch.
        labels: the source of the labels with which gradients are computed.
        label_order: the class names in the order of the logits, as in a recipe; or a mapping from the label of each
            model to them.
        targets: the matrices to compress, for a study without the axis `targets`.
        allocate: how the budget is distributed, for a study without the axis `allocate`. `global` applies to methods
            that score every weight, `spectrum` to methods whose size is set by `keep`; other methods use `uniform`.
        allow_dense: accept models if more than a tenth of the parameters cannot be compressed, as in `compress`.
        tasks: the tasks to evaluate, for cells that get none from the axis `task`. If empty, those of the cell's
            recipe are used.
        limit: the largest number of rows of each task; None for all.
        cost: whether to measure size, latency and memory as well; or the conditions under which to measure them.
        prepare: for each task, steps such as fine-tuning that run once before the compression.
        save: whether to keep all compressed models in the folder of the study.
        stream: load one block at a time, when models are compressed and evaluated, for models that are larger than
            memory. The tasks are then perplexity, and no cost is measured. None for the value in the cell's recipe.
        mlflow: True to log cells in an MLflow store in the folder of the study, or the tracking URI of a server.
    """

    title: str | None = None
    axes: Axes
    include: tuple[Axes, ...] = ()
    exclude: tuple[Mapping[str, tuple[Label, ...]], ...] = ()
    data: str | None = None
    samples: Count | None = None
    max_length: Annotated[int, Field(ge=2)] | None = None
    batch_size: Count | None = None
    labels: Labels | None = None
    label_order: tuple[Name, ...] | Mapping[str, tuple[Name, ...]] | None = None
    targets: tuple[str, ...] | None = None
    allocate: str = "uniform"
    allow_dense: bool = False
    tasks: tuple[str, ...] = ()
    limit: Count | None = None
    cost: bool | Conditions = False
    prepare: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    save: bool = False
    stream: bool | None = None
    mlflow: bool | str = False

    def order_of(self, model: Label) -> tuple[Name, ...] | None:
        """The `label_order` of the model with this label."""
        return self.label_order.get(str(model)) if isinstance(self.label_order, Mapping) else self.label_order

    def preparation_of(self, task: Label) -> tuple[Step, ...]:
        """The `prepare` steps of the task with this label."""
        return self.prepare.get(str(task), self.prepare.get(OTHERS, ()))


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study from a YAML file.

    Args:
        path: the file. Paths of models and recipes in it are looked up in its folder first.
        overrides: `key=value` arguments that replace values of the file.

    Raises:
        UserError: the file cannot be read, or its content is not a valid study.

    Example:
        >>> _ = Path("study.yaml").write_text("axes: {model: [m], method: [svd], keep: [0.5, 0.25]}")
        >>> [value.means for value in read_study(Path("study.yaml"), ["axes.keep=[0.75]"]).axes["keep"]]
        [0.75]
    """
    return parse_study(read_text(path, "study"), path, overrides)


def parse_study(text: str, path: Path, overrides: Sequence[str] = ()) -> Study:
    """Parse a study from the text of the file at `path`.

    Args:
        text: the YAML.
        path: the path of the file. Paths of models and recipes in it are looked up in its folder first.
        overrides: `key=value` arguments that replace values of the file.

    Raises:
        UserError: the content is not a valid study.
    """
    spelled = parse_mapping(text, f"The study '{path}'", "axes")
    apply_overrides(spelled, overrides, ROOT)
    return study_from(spelled, path.parent)


def study_from(spelled: Mapping[str, Any], folder: Path) -> Study:
    """Build a study from a mapping that was read from YAML.

    Args:
        spelled: the mapping.
        folder: the folder in which paths are looked up first.

    Raises:
        UserError: a key is unknown or missing, or a value is invalid; the message begins with its place.

    Example:
        >>> study_from({"axes": {"model": ["m"], "method": ["svd"]}}, Path()).axes["model"]
        (AxisValue(label='m', means='m'),)
    """
    keys = [field.name for field in fields(Study)]
    for key in spelled:
        if key not in keys:
            raise UserError(f"{ROOT}.{key}: {unknown('key', str(key), keys)}")
    values = dict(spelled)
    axes = _mapping(values.get("axes"), f"{ROOT}.axes", "axes, each with a list of values")
    axes = {name: axis_values(name, line, f"{ROOT}.axes.{name}", folder) for name, line in axes.items()}
    if "model" not in axes and "recipe" not in axes:
        raise UserError(f"{ROOT}.axes.model is missing; name at least one model.")
    if ("method" in axes) == ("recipe" in axes):
        raise UserError(f"{ROOT}.axes must have either the axis method or the axis recipe; got {', '.join(axes)}.")
    values["axes"] = axes
    values["include"] = tuple(
        _include(line, f"{ROOT}.include[{index}]", axes, folder)
        for index, line in enumerate(_list(values.get("include"), f"{ROOT}.include"))
    )
    grids = (axes, *values["include"])
    values["exclude"] = tuple(
        _exclude(line, f"{ROOT}.exclude[{index}]", grids)
        for index, line in enumerate(_list(values.get("exclude"), f"{ROOT}.exclude"))
    )
    if values.get("prepare") is not None:
        values["prepare"] = _prepare(values["prepare"], grids)
    if isinstance(values.get("targets"), str):
        values["targets"] = [values["targets"]]
    if values.get("targets") == []:
        raise must_be(f"{ROOT}.targets", "at least one group or glob", [])
    if isinstance(values.get("label_order"), Mapping):
        models = _labels("model", grids)
        for model in values["label_order"]:
            if str(model) not in models:
                raise UserError(f"{ROOT}.label_order: {unknown('model', str(model), models, 'This study has')}")
    return build(Study, {name: value for name, value in values.items() if value is not None}, ROOT)


def _labels(axis: str, grids: Sequence[Axes]) -> list[str]:
    """All labels of one axis, from the axes and the included cells, as text."""
    return list(dict.fromkeys(str(value.label) for grid in grids for value in grid.get(axis, ())))


def _prepare(spelled: object, grids: Sequence[Axes]) -> dict[str, tuple[Step, ...]]:
    """The steps of preparation for each task. A list applies to all tasks; an empty list means no preparation."""
    place = f"{ROOT}.prepare"
    if not isinstance(spelled, Mapping):
        return {OTHERS: steps_from(spelled, place)} if spelled != [] else {}
    tasks = _labels("task", grids)
    if not tasks:
        raise must_be(place, "a list of steps, where the study has no axis task", dict(spelled))
    for task in spelled:
        if task not in (*tasks, OTHERS):
            raise UserError(f"{place}: {unknown('task', str(task), (*tasks, OTHERS), 'This study has')}")
    return {task: steps_from(steps, f"{place}.{task}") if steps else () for task, steps in spelled.items()}


def _mapping(spelled: object, place: str, content: str) -> Mapping[str, Any]:
    if spelled is None:
        raise UserError(f"{place} is missing; give it a value.")
    if not isinstance(spelled, Mapping) or not spelled:
        raise must_be(place, f"a mapping of {content}", spelled)
    return spelled


def _list(spelled: object, place: str) -> list[Any]:
    if spelled is not None and not isinstance(spelled, (list, tuple)):
        raise must_be(place, "a list of mappings from axes to values", spelled)
    return list(spelled or ())


def _include(line: object, place: str, axes: Axes, folder: Path) -> dict[str, tuple[AxisValue, ...]]:
    """The values of an item of `include` on each axis that it names; a label of the axis is replaced by its value."""
    values = {}
    for name, spelled in _named_axes(line, place, axes).items():
        by_label = {value.label: value for value in axes[name]}
        values[name] = tuple(
            by_label[item]
            if isinstance(item, (str, int, float)) and item in by_label
            else axis_values(name, [item], f"{place}.{name}", folder)[0]
            for item in to_list(spelled)
        )
    return values


def _exclude(line: object, place: str, grids: Sequence[Axes]) -> dict[str, tuple[Label, ...]]:
    """The labels of an item of `exclude` on each axis that it names."""
    excluded: dict[str, tuple[Label, ...]] = {}
    for name, spelled in _named_axes(line, place, grids[0]).items():
        labels = list(dict.fromkeys(value.label for grid in grids for value in grid.get(name, ())))
        excluded[name] = tuple(to_list(spelled))
        for label in excluded[name]:
            if label not in labels:
                raise UserError(f"{place}.{name}: {unknown('value', str(label), map(str, labels))}")
    return excluded


def _named_axes(line: object, place: str, axes: Axes) -> Mapping[str, Any]:
    named = _mapping(line, place, "axes and values")
    for name in named:
        if name not in axes:
            raise UserError(f"{place}: {unknown('axis', str(name), axes, owner='This study has')}")
    return named
