"""The dataclasses of a recipe, which are the schema of its YAML, and functions that write a recipe as YAML.

The steps and methods in a `Recipe` are the objects that run. A written recipe contains every value, including
defaults, so that a later version with other defaults reproduces it.
"""

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field

from laconic.allocate import Plan, plan_to_config
from laconic.calibrate import Labels
from laconic.compress import Compress, Step
from laconic.errors import UserError
from laconic.evaluate import Conditions
from laconic.methods import Method
from laconic.methods.registry import to_config
from laconic.recipe.sampling import LARGEST_SEED, Sampling
from laconic.typed import Typed

Count = Annotated[int, Field(ge=1)]
IN_MEMORY = "memory"
"""The value of `Recipe.data` for calibration texts that were passed in memory."""
Name = bool | int | str
"""The name of a class. A number is the class index in the data; YAML reads the names `no` and `yes` as booleans."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(metaclass=Typed):
    """The measurements to make on the saved model.

    Args:
        tasks: names of tasks, as `laconic evaluate --tasks` takes them.
        cost: whether to measure parameters, bytes, latency and memory as well; or the batch sizes, lengths and
            runtime to measure them with.
        limit: the largest number of rows of each task; None for all.
    """

    name: ClassVar[str] = "recipe.evaluate"

    tasks: tuple[str, ...] = ()
    cost: bool | Conditions = False
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe(metaclass=Typed):
    """A model, calibration data and steps: all that determines a compressed model.

    Args:
        model: folder or hub name.
        data: source of the calibration texts; its training split is read. None if no step needs any.
        samples: the number of rows to draw from it, with `seed`.
        seed: the random seed of the whole run.
        max_length: the largest number of tokens in a row.
        batch_size: rows in each batch of calibration data. Random numbers are drawn batch by batch, so another value
            can change the result.
        labels: the source of the labels with which gradients for the Fisher information are computed.
        label_order: the names that the data has for the classes, in the order of the model's logits; None for the
            names in its config.json.
        steps: the steps, in order.
        evaluate: what to measure on the result; None for nothing.
        stream: load one block at a time, for a model that is larger than memory. Steps that need the whole model are
            refused.

    Example:
        >>> from laconic.methods import Svd
        >>> recipe = Recipe(model="some/model", steps=(Compress(method=Svd(), keep=0.5),))
        >>> len(key_of(recipe))
        16
    """

    name: ClassVar[str] = "recipe"

    model: str
    data: str | None = None
    samples: Count = 128
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    max_length: Annotated[int, Field(ge=2)] = 128
    batch_size: Count = 16
    labels: Labels = "auto"
    label_order: tuple[Name, ...] | None = None
    steps: tuple[Step, ...]
    evaluate: EvaluationConfig | None = None
    stream: bool | None = None

    @property
    def sampling(self) -> Sampling:
        """The settings with which calibration data are drawn."""
        return Sampling(**{field.name: getattr(self, field.name) for field in fields(Sampling)})


def with_plan(recipe: Recipe, plan: Plan) -> Recipe:
    """Replace the budget of the `compress` step of a recipe by a plan.

    Args:
        recipe: a recipe with exactly one `compress` step.
        plan: the method of each layer, by its path.

    Returns:
        A new recipe.

    Raises:
        UserError: the recipe has no `compress` step, or several.
    """
    places = [index for index, step in enumerate(recipe.steps) if isinstance(step, Compress)]
    if len(places) != 1:
        raise UserError(f"A plan replaces the budget of one compress step; the recipe has {len(places)} of them.")
    steps = list(recipe.steps)
    compress = steps[places[0]]
    assert isinstance(compress, Compress)
    steps[places[0]] = replace(compress, plan=plan, keep=None, error=None, allocate="uniform")
    return replace(recipe, steps=tuple(steps))


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `laconic run` takes."""
    return yaml.safe_dump(spell_recipe(recipe), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def spell_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a mapping for YAML or JSON; fields that are None are left out."""
    return _fields(recipe)


def spell_step(step: Step) -> dict[str, Any]:
    """One step as a mapping for YAML or JSON."""
    return {step.name: _fields(step)}


def key_of(recipe: Recipe) -> str:
    """The first sixteen hexadecimal digits of a SHA-256 hash of the recipe; it names the result in reports."""
    text = json.dumps(spell_recipe(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fields(value: Any) -> dict[str, Any]:
    values = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _plain(name, part) for name, part in values.items() if part is not None}


def _plain(name: str, value: Any) -> Any:
    match value:
        case Method():
            config = to_config(value)
            return config if config[value.name] else value.name
        case Step():
            return spell_step(value)
        case tuple():
            return [_plain(name, part) for part in value]
        case dict():
            return plan_to_config(value) if name == "plan" else {key: _plain(name, part) for key, part in value.items()}
        case _ if is_dataclass(value):
            return _fields(value)
        case _:
            return value.value if isinstance(value, StrEnum) else value
