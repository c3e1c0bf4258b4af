"""What a recipe says. The dataclasses are the schema of the YAML; the steps and methods in it are those that run."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar

from pydantic import Field

from laconic.allocate import Plan
from laconic.calibrate import Labels
from laconic.compress import Compress, Step
from laconic.errors import UserError
from laconic.evaluate import Conditions
from laconic.recipe.flow import LARGEST_SEED, Sampling
from laconic.typed import Typed

Count = Annotated[int, Field(ge=1)]
Name = bool | int | str
"""Of a class; a number is that of a class of the data, and YAML reads `no` and `yes` as truth values."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(metaclass=Typed):
    """What to measure on the saved model.

    tasks: names as `laconic evaluate --tasks` takes them.
    cost:  also parameters, bytes, latency and memory; or on which batches and lengths, in which runtime.
    limit: rows of each task at most.
    """

    name: ClassVar[str] = "recipe.evaluate"

    tasks: tuple[str, ...] = ()
    cost: bool | Conditions = False
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe(metaclass=Typed):
    """Everything that decides a compressed model.

    model:      folder or hub name.
    data:       source of the calibration texts, of which the training split is read; None where no step needs any.
    samples:    rows of it that are used, drawn with `seed`.
    max_length: tokens of a row at most.
    batch_size: rows that the model runs at once while it is measured; what is drawn at random is drawn by batch.
    labels:     where the labels of the Fisher information come from.
    label_order: the classes of the model in the order of its outputs, as the data calls them; by the names in its
                config.json where not given.
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
    """The recipe with `plan` in place of the budget of its one `compress` step.

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
