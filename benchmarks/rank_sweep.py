"""The rank rules and the rank sweep of laconic/recipes/seeds/ on two fine-tuned encoders.

Calibration: 128 training rows, one seed. Judged on the whole development set without any training afterwards: KL
divergence from the dense model (nats), the task's metric, and the bytes of the targeted matrices. Each finished cell
is one line of benchmarks/results/rank_sweep.jsonl, so a run that was stopped goes on where it was; delete the file to
begin anew.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import track

from benchmarks.cells import Cells
from benchmarks.common import calibration, clone, development, models_folder, predictions
from benchmarks.lowrank import CALIBRATION_ROWS, MODELS
from benchmarks.lowrank_quality import Judge, judged
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.compress import Compress
from laconic.model import load
from laconic.recipe import read_recipe
from laconic.recipe.flow import apply_steps

CELLS = Cells("rank_sweep", ("model", "recipe", "rank"))
RECIPES = Path(__file__).parents[1] / "laconic" / "recipes" / "seeds"
SEED = 0
RULES = ("drone-small", "drone-int-expanded", "drone-medium")
SWEEP = ("rank-svd", "rank-fwsvd", "rank-em", "rank-nesterov", "rank-anderson")
RANKS = (75, 150, 225, 300)
"""At width 384 what 150, 300, 450 and 600 are at 768."""


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else MODELS:
        measure(name)
    print(f"{CELLS}; `python -m benchmarks rank_tables` makes docs/ranks.md of them")


def measure(name: str) -> None:
    """Every cell of one model that has no line yet."""
    wanted = [*((recipe, None) for recipe in RULES), *((recipe, rank) for rank in RANKS for recipe in SWEEP)]
    missing = CELLS.missing((name, recipe, rank) for recipe, rank in wanted)
    if not missing:
        return
    lm = load(str(models_folder() / name))
    known_from = calibration(lm, MODELS[name], CALIBRATION_ROWS, SEED)
    data = development(lm, MODELS[name])
    judge = Judge(lm, data, predictions(lm, data))
    sweep = [step_of(recipe, RANKS[0]) for _, recipe, rank in missing if rank is not None]
    needs = frozenset().union(*(step.needs for step in sweep))
    known = collect_stats(lm, known_from, needs, lm.sites(sweep[0].targets)) if sweep else {}
    for key in track(missing, name):
        _, recipe, rank = key
        cell = ruled(judge, recipe, known_from) if rank is None else swept(judge, recipe, rank, known)
        CELLS.add(key, cell)


def ruled(judge: Judge, recipe: str, data: Calibration) -> dict:
    """One cell of a rule that says the rank of every matrix."""
    small = clone(judge.lm)
    _, changes = apply_steps(small, read_recipe(RECIPES / f"{recipe}.yaml").steps, data)
    return {"bytes": changes.nbytes, "dense_bytes": changes.dense_nbytes, **judged(judge, small)}


def swept(judge: Judge, recipe: str, rank: int, known: dict[str, LayerStats]) -> dict:
    """One cell of the sweep."""
    small = clone(judge.lm)
    outcome = step_of(recipe, rank).solve(small, known)
    return {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes, **judged(judge, small)}


def step_of(recipe: str, rank: int) -> Compress:
    """The one step of a recipe of the sweep, at another rank."""
    (step,) = read_recipe(RECIPES / f"{recipe}.yaml").steps
    assert isinstance(step, Compress)
    return replace(step, method=replace(step.method, rank=rank))
