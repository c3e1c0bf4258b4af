"""Quality after removing heads and channels of two fine-tuned encoders: every importance, with and without the refit.

Calibration: 128 training rows. Evaluated on the whole development set, without fine-tuning: KL divergence from the
dense model (nats), the task's metric, and the bytes of the matrices inside the blocks. Each finished cell is one line
of benchmarks/results/width_quality.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from rich.progress import track

from benchmarks.common import (
    Cells,
    calibration,
    clone,
    load_model,
    mean_of,
    quality,
)
from benchmarks.lowrank import CALIBRATION_ROWS, METRICS, MODELS, SEEDS, Reference, evaluate
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import LayerStats, collect_stats
from laconic.calibrate.gates import GateGradients, gate_gradients
from laconic.compress import Narrow
from laconic.model.prunable_group import prunable_groups

BEGIN = "<!-- made by `python -m benchmarks width_tables` -->"
CELLS = Cells("width_quality", ("model", "seed", "way", "what", "keep"))
WHATS = ("heads", "channels")
KEEPS = (0.75, 0.5, 0.25)

VARIANTS: dict[str, Narrow] = {
    "magnitude": Narrow(keep=1, importance="magnitude", refit=False),
    "magnitude + refit": Narrow(keep=1, importance="magnitude"),
    "taylor": Narrow(keep=1, importance="taylor", refit=False),
    "taylor + refit": Narrow(keep=1, importance="taylor"),
    "taylor-squared": Narrow(keep=1, importance="taylor-squared", refit=False),
    "taylor-squared + refit": Narrow(keep=1, importance="taylor-squared"),
    "variance": Narrow(keep=1, importance="variance", refit=False),
    "variance + refit": Narrow(keep=1, importance="variance"),
    "obs": Narrow(keep=1),
    "obs + global": Narrow(keep=1, ranking="global"),
    "obs + anchored": Narrow(keep=1, anchored=True),
}
"""The steps without their size."""
GATED = ("taylor", "taylor-squared")


def step_of(variant: str, what: str, keep: float) -> Narrow:
    """The step of `variant` at one size."""
    return replace(VARIANTS[variant], keep=None, **{what: keep})


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--ways", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="some of the ways")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else MODELS:
        for seed in options.seeds:
            measure(name, seed, options.ways)
    print(f"{CELLS}; `python -m benchmarks width_tables` makes the tables")


def measure(name: str, seed: int, variants: Sequence[str]) -> None:
    """Measure every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing(
        (name, seed, variant, what, keep) for what in WHATS for keep in KEEPS for variant in variants
    )
    if not missing:
        return
    lm = load_model(name)
    rows = calibration(lm, MODELS[name], CALIBRATION_ROWS, seed)
    inners = prunable_groups(lm)
    stats: dict[str, LayerStats] = collect_stats(lm, rows, Narrow(keep=1).needs, [inner.writer for inner in inners])
    gates: dict[str, GateGradients] = {}
    if any(VARIANTS[variant].importance in GATED for *_, variant, _, _ in missing):
        gates = gate_gradients(lm, rows, inners)
    reference = Reference.of(lm, MODELS[name])
    for key in track(missing, f"{name}, seed {seed}"):
        *_, variant, what, keep = key
        small = clone(lm)
        outcome = step_of(variant, what, keep).solve(small, stats, gates, rows)
        sizes = {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes}
        CELLS.add(key, {**sizes, **evaluate(reference, small)})


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/pruning.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    replace_between(ROOT / "docs/figures/pruning.md", "\n".join(filter(None, map(table, MODELS))), BEGIN)


def table(name: str) -> str:
    """KL / metric of each variant at each size, means over the seeds."""
    mine = CELLS.where(model=name)
    if not mine:
        return ""
    seeds = len({cell["seed"] for cell in mine})
    sizes = [(what, keep) for what in WHATS for keep in KEEPS]
    lines = [
        f"**{name}** ({METRICS[name]} {mine[0]['dense_metric']:.3f} dense, {mine[0]['dense_bytes'] / 1e6:.1f} MB in "
        f"the blocks; calibration seeds: {seeds}): KL to the dense model / {METRICS[name]}, by what is kept",
        "",
        f"| | {' | '.join(f'{what} {keep:.0%}' for what, keep in sizes)} |",
        "|---|" + "---|" * len(sizes),
    ]
    variants = [variant for variant in VARIANTS if all(_at(mine, variant, *size) for size in sizes)]
    least = {
        size: min(variants, key=lambda variant, size=size: mean_of(_at(mine, variant, *size), "kl"))
        for size in sizes
        if variants
    }
    for variant in variants:
        entries = [quality(_at(mine, variant, *size), bold=least[size] == variant) for size in sizes]
        lines.append(f"| {variant} | {' | '.join(entries)} |")
    # Variants that keep the same number of parts in every layer keep the same bytes.
    local = [variant for variant in variants if VARIANTS[variant].ranking != "global"]
    megabytes = [
        f"{mean(cell['bytes'] for cell in _at(mine, local[0], *size)) / 1e6:.1f}" if local else "" for size in sizes
    ]
    return "\n".join([*lines, f"| *MB in the blocks* | {' | '.join(megabytes)} |", ""])


def _at(mine: list[dict], variant: str, what: str, keep: float) -> list[dict]:
    return [cell for cell in mine if (cell["way"], cell["what"], cell["keep"]) == (variant, what, keep)]
