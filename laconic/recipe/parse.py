"""Parse a recipe from YAML, and look up steps by name.

Error messages begin with the place of the mistake, as `recipe.steps[0].compress.keep`.

For a step in a wrong form, the error message suggests the right one. A method belongs inside the step `compress`, and
parameters inside their method or step. For `{method: rtn, bits: 4}` and for `{rtn: {bits: 4}}` the suggestion is
`{compress: {method: {rtn: {bits: 4}}}}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from laconic.catalogue import catalogue, no_method
from laconic.compress import SHRINKING, Compress, Step
from laconic.errors import UserError, add_place, must_be, quote, unknown
from laconic.methods import Method
from laconic.methods.registry import METHOD_REGISTRY, parse_method, split_config
from laconic.recipe.building import apply_overrides, build, parse_mapping
from laconic.recipe.schema import EvaluationConfig, Recipe
from laconic.recover import RECOVERING
from laconic.registry import Registry, check_named_class
from laconic.yaml_loader import read_text

ROOT = "recipe"

STEPS: tuple[type[Step], ...] = (*SHRINKING, *RECOVERING)
STEP_REGISTRY: Registry[type[Step]] = Registry(
    "laconic.steps",
    "step",
    {step.name: step for step in STEPS},
    check=partial(check_named_class, Step),
    reserved=catalogue,
)
"""The class of every step, by its name in recipes."""


def find_method_or_step(name: str) -> type[Method] | type[Step] | None:
    """The class of the method or step with this name; None if there is none.

    Raises:
        UserError: a plug-in provides this name and cannot be used.

    Example:
        >>> find_method_or_step("narrow").__name__, find_method_or_step("svd").__name__
        ('Narrow', 'Svd')
    """
    return STEP_REGISTRY.find(name) or METHOD_REGISTRY.find(name)


def method_or_step_names() -> list[str]:
    """The names of all methods, then of all steps."""
    return [*METHOD_REGISTRY.names(), *STEP_REGISTRY.names()]


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: the file.
        overrides: texts of the form `key=value` that replace values of the file, as `steps[0].compress.keep=0.3`.

    Raises:
        UserError: the file cannot be read, or its content is not a valid recipe.
    """
    return parse_recipe(read_text(path, "recipe"), path, overrides)


def parse_recipe(text: str, path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Parse a recipe from the text of a YAML file.

    Args:
        text: the YAML.
        path: the path of the file, for error messages.
        overrides: texts of the form `key=value` that replace values of the file.

    Raises:
        UserError: the content is not a valid recipe.
    """
    values = parse_mapping(text, f"The recipe '{path}'", "model and steps")
    apply_overrides(values, overrides, ROOT)
    return recipe_from(values)


def recipe_from(mapping: Mapping[str, Any]) -> Recipe:
    """Build a recipe from a mapping that was read from YAML.

    Raises:
        UserError: an unknown or missing key, or a value out of range; the message begins with its place.
    """
    values = dict(mapping)
    if isinstance(values.get("evaluate"), dict):
        values["evaluate"] = build(EvaluationConfig, values["evaluate"], f"{ROOT}.evaluate")
    if "steps" in values:
        values["steps"] = steps_from(values["steps"], f"{ROOT}.steps")
    return build(Recipe, values, ROOT)


def method_or_step(value: object, place: str) -> Method | Step:
    """Parse a method or a step as `--method` of the command line takes it.

    Args:
        value: text such as `svd` or `shrink-heads:keep=0.75`, or the mapping `{name: {parameter: value}}`.
        place: the name of the value in error messages.

    Raises:
        UserError: an unknown name or parameter, or a value out of range; the message begins with `place`.
    """
    name, parameters = split_config(value, place)
    kind = find_method_or_step(name)
    if kind is None:
        raise no_method(name, method_or_step_names())
    return parse_method(value, place) if issubclass(kind, Method) else build(kind, parameters, f"{place}.{name}")


def steps_from(items: object, place: str) -> tuple[Step, ...]:
    """Build steps from a list that was read from YAML.

    Args:
        items: the list; each item is one step.
        place: the position of the list in the file; error messages begin with it.

    Raises:
        UserError: `items` is not a list, or an item is not a valid step.
    """
    if not isinstance(items, (list, tuple)) or not items:
        raise must_be(place, "a list of steps, each {name: {parameter: value}}", items)
    return tuple(_step(item, f"{place}[{index}]") for index, item in enumerate(items))


def _step(item: object, place: str) -> Step:
    entry = {item: {}} if isinstance(item, str) else item
    name, parameters = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (None, None)
    hint = suggestion(item)
    kind = None if name is None else STEP_REGISTRY.find(str(name))
    if name is None or (kind is None and hint):
        raise must_be(place, f"a step's name or {{name: {{parameter: value}}}}{hint}", item)
    if kind is None:
        raise add_place(unknown("step", str(name), STEP_REGISTRY.names()), place)
    if name == Compress.name and parameters and not (isinstance(parameters, dict) and "method" in parameters) and hint:
        raise must_be(place, f"{{compress: {{method: …}}}}{hint}", item)
    place = f"{place}.{name}"
    if parameters is not None and not isinstance(parameters, dict):
        raise must_be(place, "a mapping of parameters", parameters)
    return build(kind, parameters or {}, place)


NAMING = ("step", "method", "name", "type", "kind")
"""Keys whose value may be a name."""


def suggestion(item: object) -> str:
    """The end of an error message, `, so {…}`, with the step that was probably meant; "" if there is no suggestion."""
    parts = _Parts()
    parts.add(item)
    step = parts.step()
    return "" if step is None or step == item else f", so {quote(step)}"


class _Parts:
    """All names and parameters in an item of the list of steps, at any depth of nesting."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._methods, self._steps = METHOD_REGISTRY.names(), STEP_REGISTRY.names()
        self.parameters: dict[str, Any] = {}

    def add(self, part: object) -> None:
        if isinstance(part, str):
            self._add_name(part)
        for key, value in part.items() if isinstance(part, dict) else ():
            is_name = key in self._methods or key in self._steps
            if is_name:
                self.names.append(key)
            if isinstance(value, (dict, str)) and (is_name or key in NAMING):
                self.add(value)
            elif not is_name:
                self.parameters[str(key)] = value

    def _add_name(self, text: str) -> None:
        try:
            name, parameters = split_config(text, "")
        except UserError:
            name, parameters = text, {}
        self.names.append(name)
        self.parameters |= parameters

    def step(self) -> dict[str, Any] | None:
        """The step that has these parts; None if they do not form exactly one step or one method."""
        methods = [name for name in self.names if name in self._methods]
        steps = [name for name in self.names if name not in self._methods]
        if methods:
            return self._compression(methods[0]) if len(methods) == 1 and set(steps) <= {Compress.name} else None
        if len(steps) != 1 or steps[0] not in self._steps or steps[0] == Compress.name:
            return None
        return {steps[0]: self.parameters} if self._belong_to(steps[0]) else None

    def _belong_to(self, step: str) -> bool:
        return self.parameters.keys() <= {field.name for field in fields(STEP_REGISTRY.get(step))}

    def _compression(self, method: str) -> dict[str, Any] | None:
        method_fields = {field.name for field in fields(METHOD_REGISTRY.get(method))}
        parameters = {name: value for name, value in self.parameters.items() if name in method_fields}
        self.parameters = {name: value for name, value in self.parameters.items() if name not in method_fields}
        if not self._belong_to(Compress.name):
            return None
        return {Compress.name: {"method": {method: parameters} if parameters else method, **self.parameters}}
