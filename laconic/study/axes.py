"""Read the values of the axes of a study from YAML. Error messages begin with the place of the mistake.

The axes `model`, `method`, `recipe`, `task`, `data`, `keep`, `allocate`, `targets` and `seed` have the same meaning as
in a recipe. The axis `then` has the steps after compression. Any other axis is a parameter of methods or steps, such as
`sparsity` or `bits`: it is set in each method and step of the cell that has a parameter of that name. A value of the
form `{label: value}` is shown in tables by its label.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from laconic.builtin_recipes import find_file
from laconic.compress import Allocation
from laconic.errors import UserError, must_be, unknown
from laconic.files import expand_user
from laconic.methods.registry import METHOD_REGISTRY, split_config
from laconic.recipe.parse import STEP_REGISTRY, method_or_step_names, read_recipe, steps_from
from laconic.recipe.sampling import LARGEST_SEED

PERCENT = 100
NOTHING = "nothing"
Label = str | int | float | None


@dataclass(frozen=True)
class AxisValue:
    """One value of an axis.

    Args:
        label: its name in tables.
        means: the value for the recipe, such as a number, a path, methods or steps.
    """

    label: Label
    means: Any


@dataclass(frozen=True)
class MethodLine:
    """A method or step that may get further parameters from other axes.

    Args:
        name: the name of the method or step.
        parameters: the parameters that were given with it.
        place: its position in the file, for error messages.
    """

    name: str
    parameters: Mapping[str, Any]
    place: str


Reader = Callable[[object, str, Path], AxisValue]
"""Reads one value of an axis. Arguments: the YAML value, its position for error messages, the folder of the study."""


def axis_values(name: object, spelled: object, place: str, folder: Path) -> tuple[AxisValue, ...]:
    """Read the values of one axis.

    Args:
        name: the name of the axis.
        spelled: the YAML value: a list, or a single value.
        place: the position of the axis in the file, for error messages.
        folder: the folder of the study; a relative path is looked up there first.

    Raises:
        UserError: there is no such axis, or a value is invalid or occurs twice.

    Example:
        >>> axis_values("keep", [{"half": 0.5}, 0.25], "study.axes.keep", Path())
        (AxisValue(label='half', means=0.5), AxisValue(label=0.25, means=0.25))
    """
    if name not in AXES and name not in (parameters := _parameters()):
        close = get_close_matches(str(name), (*AXES, *parameters), n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(
            f"{place}: There is no axis '{name}': {hint}known are {', '.join(AXES)}, and the parameters of methods."
        )
    read = AXES.get(str(name), _parameter)
    lines = to_list(spelled)
    if not lines:
        raise must_be(place, "a list of at least one value", [])
    values = tuple(read(line, f"{place}[{index}]", folder) for index, line in enumerate(lines))
    if name in ("model", "recipe"):
        values = _shorten_paths(values)
    labels = [value.label for value in values]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise must_be(f"{place}[{index}]", "a value that occurs once on the axis", label)
    return values


def _parameters() -> set[str]:
    """The names of the parameters of all methods and steps."""
    kinds = (*METHOD_REGISTRY.all().values(), *STEP_REGISTRY.all().values())
    return {field.name for kind in kinds for field in fields(kind)}


def to_list(spelled: object) -> list[Any]:
    """The value itself if it is a list, else a list with the value as its only item."""
    return list(spelled) if isinstance(spelled, (list, tuple)) else [spelled]


def _split_label(line: object, place: str) -> tuple[str | None, Any]:
    """Split `{label: value}` into label and value; for any other value the label is None."""
    if isinstance(line, Mapping):
        if len(line) != 1:
            raise must_be(place, "a value or {label: value}", dict(line))
        label, value = next(iter(line.items()))
        return str(label), value
    return None, line


def _text_reader(requirement: str, is_path: bool = True) -> Reader:
    """Make a reader of text. With `is_path`, the text is looked up as a path in the folder of the study."""

    def read(line: object, place: str, folder: Path) -> AxisValue:
        label, text = _split_label(line, place)
        if not isinstance(text, str):
            raise must_be(place, requirement, text)
        text = _find_beside(text, folder) if is_path else text
        return AxisValue(label or text, text)

    return read


def _recipe(line: object, place: str, folder: Path) -> AxisValue:
    label, path = _split_label(line, place)
    if not isinstance(path, str):
        raise must_be(place, "the path or the name of a recipe", path)
    try:
        file = find_file(_find_beside(path, folder), "recipe")
        return AxisValue(label or str(file.with_suffix("")), read_recipe(file))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _method(line: object, place: str, folder: Path) -> AxisValue:
    """Read a method, or several in order. The key of a mapping is a method with its parameters, or else a label."""
    names = set(method_or_step_names())
    label = None
    if isinstance(line, Mapping) and len(line) == 1:
        name, value = next(iter(line.items()))
        if name not in names or isinstance(value, (str, list, tuple)):
            label, line = str(name), value
    lines = to_list(line)
    if not lines:
        raise must_be(place, "a method, or several in order", [])
    means = tuple(_method_line(part, place, names) for part in lines)
    return AxisValue(label or " + ".join(map(_spell_method, lines)), means)


def _method_line(line: object, place: str, names: set[str]) -> MethodLine:
    name, parameters = split_config(line, place)
    if name not in names:
        raise UserError(f"{place}: {unknown('method', name, names)}")
    return MethodLine(name, parameters, place)


def _spell_method(line: object) -> str:
    """The method as text in the form of the command line."""
    if isinstance(line, Mapping):
        name, parameters = next(iter(line.items()))
        spelled = ",".join(f"{key}={value}" for key, value in (parameters or {}).items())
        return f"{name}:{spelled}" if spelled else str(name)
    return str(line)


def _then(line: object, place: str, folder: Path) -> AxisValue:
    if line in (None, "none", NOTHING):
        return AxisValue(NOTHING, ())
    if isinstance(line, Mapping) and len(line) == 1 and next(iter(line)) not in STEP_REGISTRY.names():
        label, steps = _split_label(line, place)
        return AxisValue(label, steps_from(steps, place) if steps else ())
    lines = to_list(line)
    names = [next(iter(part)) if isinstance(part, Mapping) else str(part) for part in lines]
    return AxisValue(" + ".join(map(str, names)), steps_from(lines, place))


def _keep(line: object, place: str, folder: Path) -> AxisValue:
    label, keep = _split_label(line, place)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        error = must_be(place, "in (0, 1]", keep)
        is_percent = isinstance(keep, (int, float)) and 1 < keep <= PERCENT
        raise UserError(f"{error} Did you mean {keep / PERCENT:g}?") if is_percent else error
    return AxisValue(keep if label is None else label, float(keep))


def _seed(line: object, place: str, folder: Path) -> AxisValue:
    if isinstance(line, bool) or not isinstance(line, int) or line < 0:
        raise must_be(place, "a whole number from 0 on", line)
    if line > LARGEST_SEED:
        raise must_be(place, f"at most {LARGEST_SEED}", line)
    return AxisValue(line, line)


def _allocate(line: object, place: str, folder: Path) -> AxisValue:
    if line not in get_args(Allocation):
        raise UserError(f"{place}: {unknown('allocation', str(line), get_args(Allocation))}")
    return AxisValue(str(line), line)


def _targets(line: object, place: str, folder: Path) -> AxisValue:
    label, spelled = _split_label(line, place)
    targets = to_list(spelled)
    if not targets or not all(isinstance(target, str) and target for target in targets):
        raise must_be(place, "a group or a glob over sites, or several", spelled)
    return AxisValue(label or " + ".join(targets), tuple(targets))


def _parameter(line: object, place: str, folder: Path) -> AxisValue:
    label, value = _split_label(line, place)
    shown = value if value is None or isinstance(value, (str, int, float)) else str(value)
    return AxisValue(shown if label is None else label, value)


def _find_beside(path: str, folder: Path) -> str:
    """The path relative to the folder of the study if it exists there, else the path unchanged."""
    beside = folder / expand_user(path)
    return str(beside) if beside.exists() else path


def _shorten_paths(values: Iterable[AxisValue]) -> tuple[AxisValue, ...]:
    """Use the last part of each path as its label, if all of these are different."""
    values = tuple(values)
    names: list[Label] = [Path(str(value.label)).name for value in values]
    if len(set(names)) < len(values):
        return values
    return tuple(AxisValue(name, value.means) for name, value in zip(names, values, strict=True))


AXES: dict[str, Reader] = {
    "model": _text_reader("a folder or the name of a model"),
    "task": _text_reader("the name of a task, like glue/sst2", is_path=False),
    "data": _text_reader("the source of calibration texts"),
    "recipe": _recipe,
    "method": _method,
    "targets": _targets,
    "allocate": _allocate,
    "keep": _keep,
    "then": _then,
    "seed": _seed,
}
"""The reader of each axis that is not a parameter, in the order of the columns in tables."""
