"""What a study says: the axes of its grid, and what every cell shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from laconic.calibrate import Labels
from laconic.compress import Step
from laconic.evaluate import Conditions
from laconic.recipe.schema import Count, Name

Label = str | int | float | None
OTHERS = "others"


@dataclass(frozen=True)
class Value:
    """One place on an axis: what tables call it, and what it stands for."""

    label: Label
    means: Any


@dataclass(frozen=True)
class Line:
    """A method or step that has yet to get its parameters from other axes; `place` is where it stands in the study."""

    name: str
    parameters: Mapping[str, Any]
    place: str


Point = Mapping[str, Value]
"""A value on every axis."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of recipes, and what all of them share.

    axes:       the values of each axis, by name; the cells are their product.
    include:    further points, by their values on some of the axes; every model, task, method and seed is taken where
                none is named, and any other axis is left out.
    exclude:    points that are left out: all those that agree with one of these.
    data:       source of the calibration texts; that of the task where a study has the axis `task`.
    samples, max_length, batch_size, labels: as in a recipe; where not given, those of a cell's own recipe, or the
                usual ones.
    label_order: the classes of the models in the order of their outputs, as in a recipe; or a mapping, by what tables
                call the model.
    targets:    what is compressed, where that is no axis.
    allocate:   how a budget is shared out, where that is no axis; `global` is for methods that score every weight,
                `spectrum` for those that `keep` sizes, and uniform for the others.
    allow_dense: as in `compress`: also models of which more than a tenth of the blocks can only stay dense.
    tasks:      what every model is judged on, where that is neither an axis nor said by a cell's own recipe.
    limit:      rows of each task at most.
    cost:       also size, latency and memory; or under which conditions.
    prepare:    by task, steps that make of each model the one that is compressed, such as fine-tuning it; done once.
    save:       keep every compressed model in the study's folder.
    mlflow:     log every cell in MLflow, in the study's folder or at a tracking URI.
    """

    title: str | None = None
    axes: Mapping[str, tuple[Value, ...]]
    include: tuple[Mapping[str, tuple[Value, ...]], ...] = ()
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
    mlflow: bool | str = False

    def order_of(self, model: Label) -> tuple[Name, ...] | None:
        """The `label_order` of the model that tables call so."""
        return self.label_order.get(str(model)) if isinstance(self.label_order, Mapping) else self.label_order

    def prepares(self, task: Label) -> tuple[Step, ...]:
        """The steps that make the model of a task, and of one that is not named those of `OTHERS`."""
        return self.prepare.get(str(task), self.prepare.get(OTHERS, ()))
