"""YAML in, `Recipe` out. Every mistake is one sentence that begins with its place, `recipe.steps[0].compress.keep`.

A line that is written in another form than a step's is answered with the step that is most likely meant: a method
stands within the step `compress`, and parameters stand within what they are of, so `{method: rtn, bits: 4}` and
`{rtn: {bits: 4}}` are both meant for `{compress: {method: {rtn: {bits: 4}}}}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from laconic.catalogue import no_method
from laconic.compress import Compress, Step
from laconic.errors import UserError, must_be, placed, shown, unknown
from laconic.methods import Method
from laconic.methods.notation import parse_method, split_config
from laconic.methods.registry import METHOD_REGISTRY
from laconic.recipe.building import build, mapping_of, put_all
from laconic.recipe.schema import Evaluation, Recipe
from laconic.recipe.steps import STEP_REGISTRY, find_method_or_step, method_or_step_names
from laconic.yaml_loader import text_of

ROOT = "recipe"


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with each `key=value` of `overrides` put in place.

    Raises:
        UserError: the file cannot be read, or what it says is no recipe.
    """
    return parse_recipe(text_of(path, "recipe"), path, overrides)


def parse_recipe(text: str, path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that the `text` of the file at `path` spells, with each `key=value` of `overrides` put in place.

    Raises:
        UserError: what it says is no recipe.
    """
    spelled = mapping_of(text, f"The recipe '{path}'", "model and steps")
    put_all(spelled, overrides, ROOT)
    return recipe_from(spelled)


def recipe_from(spelled: Mapping[str, Any]) -> Recipe:
    """The recipe that a mapping spells, as read from YAML.

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
    """What the command line's `--method` names: a method of one matrix, or a step such as `shrink-heads:keep=0.75`.

    Raises:
        UserError: an unknown name or parameter, or a value out of range; the sentence begins with `place`.
    """
    name, parameters = split_config(value, place)
    kind = find_method_or_step(name)
    if kind is None:
        raise no_method(name, method_or_step_names())
    return parse_method(value, place) if issubclass(kind, Method) else build(kind, parameters, f"{place}.{name}")


def steps_from(spelled: object, place: str) -> tuple[Step, ...]:
    """The steps that a list spells.

    Raises:
        UserError: it is no list, or a step cannot be; the sentence begins with its place.
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
        raise placed(unknown("step", str(name), STEP_REGISTRY.names()), place)
    if name == Compress.name and parameters and not (isinstance(parameters, dict) and "method" in parameters) and meant:
        raise must_be(place, f"{{compress: {{method: …}}}}{meant}", spelled)
    place = f"{place}.{name}"
    if parameters is not None and not isinstance(parameters, dict):
        raise must_be(place, "a mapping of parameters", parameters)
    return build(kind, parameters or {}, place)


NAMING = ("step", "method", "name", "type", "kind")
"""Keys whose value may be a name."""


def suggestion(line: object) -> str:
    """`, so {…}` with the step that `line` stands for; empty where there is none, or it is `line` itself."""
    parts = _Parts()
    parts.add(line)
    step = parts.step()
    return "" if step is None or step == line else f", so {shown(step)}"


class _Parts:
    """The names and parameters in a line, wherever they stand in it."""

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
        """The step of these parts; None where they are not those of one step, or of one method."""
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
