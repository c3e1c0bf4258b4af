"""Recipes: a recipe names a model, its data and the steps that compress it. This package reads, writes and runs them.

Internal: it may change with any version.
"""

from laconic.recipe.parse import parse_recipe, read_recipe, recipe_from
from laconic.recipe.run import RunRecord, run
from laconic.recipe.schema import EvaluationConfig, Recipe, spell_recipe, write_recipe

__all__ = [
    "EvaluationConfig",
    "Recipe",
    "RunRecord",
    "parse_recipe",
    "read_recipe",
    "recipe_from",
    "run",
    "spell_recipe",
    "write_recipe",
]
