"""The cells of a study: each is a recipe, with what it is called on every axis."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from laconic.compress import AwqScale, Compress, Narrow, Shorten, ShrinkHeads, SmoothQuant, Step
from laconic.recipe.schema import Recipe
from laconic.recipe.write import key_of, spell_recipe, spell_step
from laconic.recover import Student
from laconic.study.schema import Label

KINDS: tuple[tuple[tuple[type[Step], ...], str], ...] = (
    ((Narrow, ShrinkHeads), "width"),
    ((Shorten,), "depth"),
    ((AwqScale, SmoothQuant), "quantization"),
    ((Student,), "student"),
)
ORIGINAL, TRAINING, COMBINATION = "original", "training", "combination"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid.

    axes:     its label on every axis; None on one that means nothing for it.
    recipe:   what makes its model, of the model before it was prepared, and what that is judged on.
    prepare:  steps that come first, and that other cells share.
    baseline: the prepared model itself, which the others are compared with.
    save:     whether the model is kept.
    """

    axes: Mapping[str, Label]
    recipe: Recipe
    prepare: tuple[Step, ...] = ()
    baseline: bool = False
    save: bool = False

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that name the record: a hash of everything that decides the result."""
        said = [spell_recipe(self.recipe), [spell_step(step) for step in self.prepare]]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def preparation(self) -> Recipe | None:
        """What makes the model that the cell begins with; None where it begins with the model as it is."""
        return replace(self.recipe, steps=self.prepare, evaluate=None) if self.prepare else None

    @property
    def ground(self) -> str:
        """Names what cells share that compress one model on the same data: they measure it once."""
        return key_of(replace(self.recipe, steps=self.prepare, evaluate=None))

    @property
    def original(self) -> "Cell":
        """The baseline that it is compared with; data and seed count only where a preparation reads them."""
        axes = {name: None for name in self.axes} | {name: self.axes.get(name) for name in ("model", "task")}
        axes["method" if "method" in axes else "recipe"] = ORIGINAL
        recipe = replace(self.recipe, steps=())
        if self.prepare:
            axes["seed"] = self.axes.get("seed")
        else:
            fresh = Recipe(model=recipe.model, steps=(), label_order=recipe.label_order)
            recipe = replace(fresh, evaluate=recipe.evaluate)
        kept = {name: label for name, label in axes.items() if name in self.axes}
        return Cell(axes=kept, recipe=recipe, prepare=self.prepare, baseline=True)

    @property
    def family(self) -> str:
        """What kind of change it makes: that of its only kind of compression, or `combination`."""
        if self.baseline:
            return ORIGINAL
        kinds = {kind for step in self.recipe.steps if (kind := _kind(step))}
        return COMBINATION if len(kinds) > 1 else next(iter(kinds), TRAINING)


def _kind(step: Step) -> str | None:
    if isinstance(step, Compress):
        return step.method.family
    return next((kind for types, kind in KINDS if isinstance(step, types)), None)
