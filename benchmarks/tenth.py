"""minilm-sst2 in a tenth of its bytes, by two recipes, with and without their distillation.

Evaluated on the whole development set: KL divergence from the dense model (nats), accuracy, bytes of the targeted
matrices, and the seconds of all steps. Each finished cell is one line of benchmarks/results/tenth.jsonl. An interrupted
run continues; to start again, delete the file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import Cells, clone, load_model, mean_of, spread
from benchmarks.lowrank import SEEDS, Reference, evaluate
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration
from laconic.calibrate.sources import read
from laconic.compress import Step
from laconic.model import LanguageModel
from laconic.progress import silent
from laconic.recipe import read_recipe
from laconic.recipe.sampling import Sampling
from laconic.recover.training import Training

CELLS = Cells("tenth", ("way", "seed"))
BEGIN = "<!-- made by `python -m benchmarks tenth_tables` -->"
MODEL, SOURCE = "minilm-sst2", "glue/sst2"
RECIPES = Path(__file__).parents[1] / "laconic" / "recipes"
VARIANTS = {"factors of 16 bits": "sst2-distil.yaml", "factors of 6 bits": "sst2-tenth.yaml"}
TAUGHT = ", taught"


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--ways", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="some of the ways")
    options = parser.parse_args(argv)
    lm = load_model(MODEL)
    reference = Reference.of(lm, SOURCE)
    for variant, seed in CELLS.missing(
        (f"{variant}{TAUGHT}", seed) for seed in options.seeds for variant in options.ways
    ):
        measure(reference, variant.removesuffix(TAUGHT), seed)
    print(f"{CELLS}; `python -m benchmarks tenth_tables` makes the tables")


def measure(reference: Reference, variant: str, seed: int) -> None:
    """Measure both cells of one recipe and one seed."""
    recipe = read_recipe(RECIPES / VARIANTS[variant])
    data = Sampling(samples=recipe.samples, seed=seed).of(reference.lm, read(SOURCE, "train"), silent)
    first, *later = recipe.steps
    begun = time.perf_counter()
    small = replace(clone(reference.lm), original=reference.lm)
    outcome = first.apply(small, data)
    seconds = time.perf_counter() - begun
    untaught = [step for step in later if not isinstance(step, Training)]
    for name, steps in ((variant, untaught), (f"{variant}{TAUGHT}", later)):
        here = clone(small)
        begun = time.perf_counter()
        nbytes = after(here, steps, data, outcome.nbytes)
        sizes = {"bytes": nbytes, "dense_bytes": outcome.dense_nbytes}
        took = seconds + time.perf_counter() - begun
        CELLS.add((name, seed), {**sizes, "seconds": took, **evaluate(reference, here)})


def after(lm: LanguageModel, steps: Sequence[Step], data: Calibration, nbytes: int) -> int:
    """Apply the steps; return the bytes of the targeted matrices, or `nbytes` if no step changes them."""
    for step in steps:
        outcome = step.apply(lm, data)
        nbytes += outcome.nbytes - outcome.dense_nbytes
    return nbytes


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/recovery.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    variants = [name for variant in VARIANTS for name in (variant, f"{variant}{TAUGHT}") if CELLS.where(way=name)]
    if not variants:
        return
    dense = CELLS.where(way=variants[0])[0]
    lines = [
        "| | of the bytes | accuracy | KL, nats | minutes |",
        "|---|---:|---:|---:|---:|",
        f"| dense | 100 % | {dense['dense_metric']:.4f} | | |",
    ]
    for variant in variants:
        here = CELLS.where(way=variant)
        accuracy, kl = (spread([cell[what] for cell in here], 4) for what in ("metric", "kl"))
        share = mean_of(here, "bytes") / here[0]["dense_bytes"]
        lines.append(f"| {variant} | {share:.1%} | {accuracy} | {kl} | {mean_of(here, 'seconds') / 60:.1f} |")
    replace_between(ROOT / "docs/figures/recovery.md", "\n".join([*lines, ""]), BEGIN)
