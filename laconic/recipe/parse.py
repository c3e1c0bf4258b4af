"""Parse a recipe from YAML. Error messages begin with the place of the mistake, as `recipe.steps[0].compress.keep`.

For a step in a wrong form, the error message suggests the right one. A method belongs inside the step `compress`, and
parameters inside their method or step. For `{method: rtn, bits: 4}` and for `{rtn: {bits: 4}}` the suggestion is
`{compress: {method: {rtn: {bits: 4}}}}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from laconic.catalogue import no_method
from laconic.compress import Compress, Step
from laconic.errors import UserError, add_place, must_be, quote, unknown
from laconic.methods import Method
from laconic.methods.registry import METHOD_REGISTRY, parse_method, split_config
from laconic.recipe.building import build, mapping_of, put_all
from laconic.recipe.schema import Evaluation, Recipe
from laconic.recipe.steps import STEP_REGISTRY, find_method_or_step, method_or_step_names
from laconic.yaml_loader import read_text

ROOT = "recipe"


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
    spelled = mapping_of(text, f"The recipe '{path}'", "model and steps")
    put_all(spelled, overrides, ROOT)
    return recipe_from(spelled)


def recipe_from(spelled: Mapping[str, Any]) -> Recipe:
    """Build a recipe from a mapping that was read from YAML.

    Raises:
        UserError: an unknown or missing key, or a value out of range; the sentence begins with its place.
    """
    values = dict(spelled)
    if isinstance(values.get("evaluate"), dict):
        values["evaluate"] = build(Evaluation, values["evaluate"], f"{ROOT}.evaluate")
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


def steps_from(spelled: object, place: str) -> tuple[Step, ...]:
    """Build steps from a list that was read from YAML.

    Args:
        spelled: the list; each item is one step.
        place: the position of the list in the file; error messages begin with it.

    Raises:
        UserError: `spelled` is not a list, or an item is not a valid step.
    """
    if not isinstance(spelled, (list, tuple)) or not spelled:
        raise must_be(place, "a list of steps, each {name: {parameter: value}}", spelled)
    return tuple(_step(line, f"{place}[{index}]") for index, line in enumerate(spelled))


def _step(spelled: object, place: str) -> Step:
    line = {spelled: {}} if isinstance(spelled, str) else spelled
    name, parameters = next(iter(line.items())) if isinstance(line, dict) and len(line) == 1 else (None, None)
    meant = suggestion(spelled)
    kind = None if name is None else STEP_REGISTRY.find(str(name))
    if name is None or (kind is None and meant):
        raise must_be(place, f"a step's name or {{name: {{parameter: value}}}}{meant}", spelled)
    if kind is None:
        raise add_place(unknown("step", str(name), STEP_REGISTRY.names()), place)
    if name == Compress.name and parameters and not (isinstance(parameters, dict) and "method" in parameters) and meant:
        raise must_be(place, f"{{compress: {{method: …}}}}{meant}", spelled)
    place = f"{place}.{name}"
    if parameters is not None and not isinstance(parameters, dict):
        raise must_be(place, "a mapping of parameters", parameters)
    return build(kind, parameters or {}, place)


NAMING = ("step", "method", "name", "type", "kind")
"""Keys whose value may be a name."""


def suggestion(line: object) -> str:
    """The end of an error message, `, so {…}`, with the step that was probably meant; "" if there is no suggestion."""
    parts = _Parts()
    parts.add(line)
    step = parts.step()
    return "" if step is None or step == line else f", so {quote(step)}"


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

    def _add_name(self, spelled: str) -> None:
        try:
            name, parameters = split_config(spelled, "")
        except UserError:
            name, parameters = spelled, {}
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
        return {steps[0]: self.parameters} if self._are_of(steps[0]) else None

    def _are_of(self, step: str) -> bool:
        return self.parameters.keys() <= {field.name for field in fields(STEP_REGISTRY.get(step))}

    def _compression(self, method: str) -> dict[str, Any] | None:
        own = {field.name for field in fields(METHOD_REGISTRY.get(method))}
        given = {name: value for name, value in self.parameters.items() if name in own}
        self.parameters = {name: value for name, value in self.parameters.items() if name not in own}
        if not self._are_of(Compress.name):
            return None
        return {Compress.name: {"method": {method: given} if given else method, **self.parameters}}
