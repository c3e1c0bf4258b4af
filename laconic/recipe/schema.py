"""What a recipe says, and how it is written: the dataclasses are the schema of the YAML.

The steps and methods in a recipe are those that run. A written recipe has every value in it, so that a changed default
cannot change it.
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
from laconic.methods.notation import to_config
from laconic.recipe.flow import LARGEST_SEED, Sampling
from laconic.typed import Typed

Count = Annotated[int, Field(ge=1)]
Name = bool | int | str
"""Of a class; a number is that of a class of the data, and YAML reads `no` and `yes` as truth values."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(metaclass=Typed):
    """What to measure on the saved model.

    Args:
        tasks: names as `laconic evaluate --tasks` takes them.
        cost: also parameters, bytes, latency and memory; or on which batches and lengths, in which runtime.
        limit: rows of each task at most.
    """

    name: ClassVar[str] = "recipe.evaluate"

    tasks: tuple[str, ...] = ()
    cost: bool | Conditions = False
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe(metaclass=Typed):
    """Everything that decides a compressed model.

    Args:
        model: folder or hub name.
        data: source of the calibration texts, of which the training split is read; None where no step needs any.
        samples: rows of it that are used, drawn with `seed`.
        seed: of everything that is drawn at random.
        max_length: tokens of a row at most.
        batch_size: rows that the model runs at once while it is measured; what is drawn at random is drawn by batch.
        labels: where the labels of the Fisher information come from.
        label_order: the classes of the model in the order of its outputs, as the data calls them; by the names in its
            config.json where not given.
        steps: what is done, in order.
        evaluate: what to measure on the result; None for nothing.

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
    evaluate: Evaluation | None = None

    @property
    def sampling(self) -> Sampling:
        """How the calibration data are drawn."""
        return Sampling(**{field.name: getattr(self, field.name) for field in fields(Sampling)})


def with_plan(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with a plan in place of the budget of its one `compress` step.

    Args:
        recipe: with one such step.
        plan: a method for each site.

    Raises:
        UserError: it has none, or several.
    """
    places = [index for index, step in enumerate(recipe.steps) if isinstance(step, Compress)]
    if len(places) != 1:
        raise UserError(f"A plan replaces the budget of one compress step; the recipe has {len(places)} of them.")
    steps = list(recipe.steps)
    planned = steps[places[0]]
    assert isinstance(planned, Compress)
    steps[places[0]] = replace(planned, plan=plan, keep=None, error=None, allocate="uniform")
    return replace(recipe, steps=tuple(steps))


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `laconic run` takes."""
    return yaml.safe_dump(spell_recipe(recipe), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def spell_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe in plain values; what is None is left out."""
    return _fields(recipe)


def spell_step(step: Step) -> dict[str, Any]:
    """One step in plain values."""
    return {step.name: _fields(step)}


def key_of(recipe: Recipe) -> str:
    """Sixteen hexadecimal digits that name the result: a hash of everything in the recipe that decides it."""
    text = json.dumps(spell_recipe(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fields(value: Any) -> dict[str, Any]:
    named = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _plain(name, part) for name, part in named.items() if part is not None}


def _plain(name: str, value: Any) -> Any:
    match value:
        case Method():
            spelled = to_config(value)
            return spelled if spelled[value.name] else value.name
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
