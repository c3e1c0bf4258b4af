"""The values of each axis: what YAML spells, checked one by one, with the place of every mistake.

`model`, `method`, `recipe`, `task`, `data`, `keep`, `allocate`, `targets` and `seed` mean what they do elsewhere; what
`then` says follows compression. Any other axis is a parameter, as `sparsity` or `bits`: every method and step of the
cell that has one of this name gets it. `{label: value}` calls a value something else in tables.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from laconic.compress import Allocation
from laconic.errors import UserError, must_be, unknown
from laconic.methods import METHODS
from laconic.methods.notation import split_config
from laconic.paths import expanded
from laconic.recipe.flow import LARGEST_SEED
from laconic.recipe.parse import read_recipe, steps_from
from laconic.recipe.steps import STEPS
from laconic.shipped import located
from laconic.study.schema import Label, Line, Value

PERCENT = 100
NOTHING = "nothing"


def axis_values(name: object, spelled: object, place: str, folder: Path) -> tuple[Value, ...]:
    """The values of the axis `name`; paths are those beside the study, in `folder`, where they exist there.

    Raises:
        UserError: no such axis, or a value that cannot be, or one that occurs twice.
    """
    if name not in (*AXES, *_parameters()):
        close = get_close_matches(str(name), (*AXES, *_parameters()), n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(
            f"{place}: There is no axis '{name}': {hint}known are {', '.join(AXES)}, and the parameters of methods."
        )
    read = AXES.get(str(name), _parameter)
    lines = spelled if isinstance(spelled, (list, tuple)) else [spelled]
    if not lines:
        raise must_be(place, "a list of at least one value", [])
    values = tuple(read(line, f"{place}[{index}]", folder) for index, line in enumerate(lines))
    if name in ("model", "recipe"):
        values = _told_apart(values)
    labels = [value.label for value in values]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise must_be(f"{place}[{index}]", "a value that the axis has not yet", label)
    return values


def _parameters() -> set[str]:
    return {field.name for kind in (*METHODS, *STEPS) for field in fields(kind)}


def _named(line: object, place: str) -> tuple[str | None, Any]:
    """The label of a value and the value, where it has one."""
    if isinstance(line, Mapping):
        if len(line) != 1:
            raise must_be(place, "a value or {label: value}", dict(line))
        label, value = next(iter(line.items()))
        return str(label), value
    return None, line


def _model(line: object, place: str, folder: Path) -> Value:
    label, source = _named(line, place)
    if not isinstance(source, str):
        raise must_be(place, "a folder or the name of a model", source)
    source = _beside(source, folder)
    return Value(label or source, source)


def _recipe(line: object, place: str, folder: Path) -> Value:
    label, path = _named(line, place)
    if not isinstance(path, str):
        raise must_be(place, "the path or the name of a recipe", path)
    try:
        found = located(_beside(path, folder), "recipe")
        return Value(label or str(found.with_suffix("")), read_recipe(found))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _method(line: object, place: str, folder: Path) -> Value:
    """A method, or several in order; a mapping from a method's name is one with parameters, from any other a label."""
    known = {kind.name for kind in (*METHODS, *STEPS)}
    label = None
    if isinstance(line, Mapping) and len(line) == 1:
        name, value = next(iter(line.items()))
        if name not in known or isinstance(value, (str, list, tuple)):
            label, line = str(name), value
    lines = line if isinstance(line, (list, tuple)) else [line]
    if not lines:
        raise must_be(place, "a method, or several in order", [])
    means = tuple(_line(one, place, known) for one in lines)
    return Value(label or " + ".join(map(_spelled, lines)), means)


def _line(line: object, place: str, known: set[str]) -> Line:
    name, parameters = split_config(line, place)
    if name not in known:
        raise UserError(f"{place}: {unknown('method', name, known)}")
    return Line(name, parameters, place)


def _spelled(line: object) -> str:
    """As the command line has it."""
    if isinstance(line, Mapping):
        name, parameters = next(iter(line.items()))
        said = ",".join(f"{key}={value}" for key, value in (parameters or {}).items())
        return f"{name}:{said}" if said else str(name)
    return str(line)


def _then(line: object, place: str, folder: Path) -> Value:
    if line in (None, "none", NOTHING):
        return Value(NOTHING, ())
    if isinstance(line, Mapping) and len(line) == 1 and next(iter(line)) not in {step.name for step in STEPS}:
        label, steps = _named(line, place)
        return Value(label, steps_from(steps, place) if steps else ())
    lines = line if isinstance(line, (list, tuple)) else [line]
    names = [next(iter(one)) if isinstance(one, Mapping) else str(one) for one in lines]
    return Value(" + ".join(map(str, names)), steps_from(lines, place))


def _keep(line: object, place: str, folder: Path) -> Value:
    label, keep = _named(line, place)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        error = must_be(place, "in (0, 1]", keep)
        percent = isinstance(keep, (int, float)) and 1 < keep <= PERCENT
        raise UserError(f"{error} Did you mean {keep / PERCENT:g}?") if percent else error
    return Value(keep if label is None else label, float(keep))


def _seed(line: object, place: str, folder: Path) -> Value:
    if isinstance(line, bool) or not isinstance(line, int) or line < 0:
        raise must_be(place, "a whole number from 0 on", line)
    if line > LARGEST_SEED:
        raise must_be(place, f"at most {LARGEST_SEED}", line)
    return Value(line, line)


def _task(line: object, place: str, folder: Path) -> Value:
    label, task = _named(line, place)
    if not isinstance(task, str):
        raise must_be(place, "the name of a task, like glue/sst2", task)
    return Value(label or task, task)


def _data(line: object, place: str, folder: Path) -> Value:
    label, source = _named(line, place)
    if not isinstance(source, str):
        raise must_be(place, "the source of calibration texts", source)
    return Value(label or source, _beside(source, folder))


def _allocate(line: object, place: str, folder: Path) -> Value:
    if line not in get_args(Allocation):
        raise UserError(f"{place}: {unknown('allocation', str(line), get_args(Allocation))}")
    return Value(str(line), line)


def _targets(line: object, place: str, folder: Path) -> Value:
    label, targets = _named(line, place)
    several = targets if isinstance(targets, (list, tuple)) else [targets]
    if not several or not all(isinstance(one, str) and one for one in several):
        raise must_be(place, "a group or a glob over sites, or several", targets)
    return Value(label or " + ".join(several), tuple(several))


def _parameter(line: object, place: str, folder: Path) -> Value:
    label, value = _named(line, place)
    plain = value if value is None or isinstance(value, (str, int, float)) else str(value)
    return Value(plain if label is None else label, value)


def _beside(path: str, folder: Path) -> str:
    """The path beside the study where there is something, else as it stands."""
    there = folder / expanded(path)
    return str(there) if there.exists() else path


def _told_apart(values: Iterable[Value]) -> tuple[Value, ...]:
    """Labels that are paths by their last part, where that tells them apart."""
    values = tuple(values)
    short: list[Label] = [Path(str(value.label)).name for value in values]
    if len(set(short)) < len(values):
        return values
    return tuple(Value(label, value.means) for label, value in zip(short, values, strict=True))


AXES: dict[str, Callable[[object, str, Path], Value]] = {
    "model": _model,
    "task": _task,
    "data": _data,
    "recipe": _recipe,
    "method": _method,
    "targets": _targets,
    "allocate": _allocate,
    "keep": _keep,
    "then": _then,
    "seed": _seed,
}
"""Those that are no parameters, in the order in which cells are told apart in tables."""
