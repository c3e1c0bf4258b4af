"""YAML in, `Recipe` out. Every mistake is one sentence that begins with its place, `recipe.steps[0].compress.keep`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laconic.compress import Compress, Step
from laconic.errors import must_be, unknown
from laconic.methods import METHODS, Method
from laconic.methods.notation import parse_method, split_config
from laconic.methods.problem import placed
from laconic.named import no_method
from laconic.recipe.building import build, mapping_of
from laconic.recipe.meant import suggestion
from laconic.recipe.overrides import put_all
from laconic.recipe.schema import Evaluation, Recipe
from laconic.recipe.steps import STEPS
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
    steps = {step.name: step for step in STEPS}
    if name in steps:
        return build(steps[name], parameters, f"{place}.{name}")
    methods = [method.name for method in METHODS]
    if name not in methods:
        raise no_method(name, [*methods, *steps])
    return parse_method(value, place)


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
    kinds = {step.name: step for step in STEPS}
    name, parameters = next(iter(line.items())) if isinstance(line, dict) and len(line) == 1 else (None, None)
    meant = suggestion(spelled)
    if name is None or (name not in kinds and meant):
        raise must_be(place, f"a step's name or {{name: {{parameter: value}}}}{meant}", spelled)
    if name not in kinds:
        raise placed(unknown("step", str(name), kinds), place)
    if name == Compress.name and parameters and not (isinstance(parameters, dict) and "method" in parameters) and meant:
        raise must_be(place, f"{{compress: {{method: …}}}}{meant}", spelled)
    place = f"{place}.{name}"
    if parameters is not None and not isinstance(parameters, dict):
        raise must_be(place, "a mapping of parameters", parameters)
    return build(kinds[name], parameters or {}, place)
