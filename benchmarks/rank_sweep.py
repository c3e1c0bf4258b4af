"""The rank rules and the rank sweep of laconic/recipes/seeds/ on two fine-tuned encoders.

Calibration: 128 training rows, one seed. Evaluated on the whole development set without training after that: KL
divergence from the dense model (nats), the task's metric, and the bytes of the targeted matrices. Each finished cell is
one line of benchmarks/results/rank_sweep.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import track

from benchmarks.common import (
    RESULTS,
    Cells,
    calibration,
    clone,
    load_model,
)
from benchmarks.lowrank import CALIBRATION_ROWS, METRICS, MODELS, Reference, evaluate
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.compress import Compress
from laconic.recipe import read_recipe
from laconic.recipe.flow import apply_steps

CELLS = Cells("rank_sweep", ("model", "recipe", "rank"))
RECIPES = Path(__file__).parents[1] / "laconic" / "recipes" / "seeds"
SEED = 0
RULES = ("drone-small", "drone-int-expanded", "drone-medium")
SWEEP = ("rank-svd", "rank-fwsvd", "rank-em", "rank-nesterov", "rank-anderson")
RANKS = (75, 150, 225, 300)
"""At width 384 they correspond to 150, 300, 450 and 600 at width 768."""


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else MODELS:
        measure(name)
    print(f"{CELLS}; `python -m benchmarks rank_tables` makes docs/figures/ranks.md of them")


def measure(name: str) -> None:
    """Measure every cell of one model that has no line yet."""
    wanted = [*((recipe, None) for recipe in RULES), *((recipe, rank) for rank in RANKS for recipe in SWEEP)]
    missing = CELLS.missing((name, recipe, rank) for recipe, rank in wanted)
    if not missing:
        return
    lm = load_model(name)
    known_from = calibration(lm, MODELS[name], CALIBRATION_ROWS, SEED)
    reference = Reference.of(lm, MODELS[name])
    sweep = [step_of(recipe, RANKS[0]) for _, recipe, rank in missing if rank is not None]
    needs = frozenset().union(*(step.needs for step in sweep))
    stats = collect_stats(lm, known_from, needs, lm.sites(sweep[0].targets)) if sweep else {}
    for key in track(missing, name):
        _, recipe, rank = key
        cell = (
            measure_rule(reference, recipe, known_from)
            if rank is None
            else measure_rank(reference, recipe, rank, stats)
        )
        CELLS.add(key, cell)


def measure_rule(reference: Reference, recipe: str, data: Calibration) -> dict:
    """Measure one cell of a rule that sets the rank of every matrix."""
    small = clone(reference.lm)
    _, changes = apply_steps(small, read_recipe(RECIPES / f"{recipe}.yaml").steps, data)
    return {"bytes": changes.nbytes, "dense_bytes": changes.dense_nbytes, **evaluate(reference, small)}


def measure_rank(reference: Reference, recipe: str, rank: int, stats: dict[str, LayerStats]) -> dict:
    """Measure one cell of the sweep."""
    small = clone(reference.lm)
    outcome = step_of(recipe, rank).apply_with(small, stats)
    return {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes, **evaluate(reference, small)}


def step_of(recipe: str, rank: int) -> Compress:
    """The step of a recipe of the sweep, with another rank."""
    (step,) = read_recipe(RECIPES / f"{recipe}.yaml").steps
    assert isinstance(step, Compress)
    return replace(step, method=replace(step.method, rank=rank))


BEGIN = "<!-- made by `python -m benchmarks rank_tables` -->"


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables into docs/figures/ranks.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    parts = [*(rules(name) + sweep(name) for name in MODELS), searched(), budgets()]
    replace_between(ROOT / "docs/figures/ranks.md", "\n".join(parts), BEGIN)


def rules(name: str) -> str:
    """The three rank rules."""
    mine = {cell["recipe"]: cell for cell in CELLS.where(model=name)}
    dense = next(iter(mine.values()))["dense_metric"]
    lines = [
        f"## {name} ({METRICS[name]} {dense:.3f} dense)",
        "",
        f"| rule | bytes kept | KL, nats | {METRICS[name]} |",
        "|---|---:|---:|---:|",
        *(f"| {rule} | {_kept(mine[rule])} | {mine[rule]['kl']:.4f} | {_metric(mine[rule])} |" for rule in RULES),
    ]
    return "\n".join([*lines, "", ""])


def sweep(name: str) -> str:
    """Metric and KL by rank, one column for each variant."""
    mine = {(cell["recipe"], cell["rank"]): cell for cell in CELLS.where(model=name)}
    lines = [
        f"| rank (of 384) | bytes kept | {' | '.join(recipe.removeprefix('rank-') for recipe in SWEEP)} |",
        "|---|---:|" + "---:|" * len(SWEEP),
    ]
    for rank in RANKS:
        here = [mine.get((recipe, rank)) for recipe in SWEEP]
        entries = " | ".join(f"{_metric(cell)} / {cell['kl']:.4f}" if cell else "not run" for cell in here)
        kept = next((_kept(cell) for cell in here if cell), "")
        lines.append(f"| {rank} | {kept} | {entries} |")
    return "\n".join([*lines, ""])


def searched() -> str:
    """The table of the search by an error, beside the other variants at equal bytes."""
    rows = json.loads((RESULTS / "threshold.json").read_text())["rows"]
    lines = [
        "## Ranks searched by an error",
        "",
        "`python -m benchmarks threshold`: minilm-sst2, drone, attention and feed-forward matrices.",
        "",
        "| KL allowed | on calibration | held out | accuracy | bytes kept | uniform there | spectrum there |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['error']} | {row['kl_on_calibration']:.4f} | {row['kl']:.4f} | {row['metric']:.3f} "
            f"| {row['bytes']:.3f} | {row['kl_uniform']:.4f} | {row['kl_spectrum']:.4f} |"
        )
    return "\n".join([*lines, ""])


def budgets() -> str:
    """The table of latency budgets."""
    measured = json.loads((RESULTS / "latency_budget.json").read_text())
    lines = [
        "## Budgets of time",
        "",
        f"`python -m benchmarks latency_budget`: minilm-sst2, kfac-svd, {measured['batch']} × {measured['length']} "
        f"tokens, float32, eager, {measured['threads']} thread.",
        "",
        "| keep of the latency | inputs shared | measured | off by | bytes kept | KL, nats |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for row in measured["rows"]:
        lines.append(
            f"| {row['keep']} | {'yes' if row['share_inputs'] else 'no'} | {row['measured']:.3f} "
            f"| {row['measured'] / row['keep'] - 1:+.1%} | {_kept(row)} | {row['kl']:.4f} |"
        )
    return "\n".join([*lines, ""])


def _kept(cell: dict) -> str:
    return f"{cell['bytes'] / cell['dense_bytes']:.3f}"


def _metric(cell: dict) -> str:
    return f"{cell['metric']:.3f}"
