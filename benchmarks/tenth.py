"""minilm-sst2 in a tenth of its bytes, by two shipped recipes, with and without what they learn of the original.

Judged on the whole development set: KL divergence from the dense model (nats), accuracy, bytes of the targeted
matrices, and the seconds of all steps. Each finished cell is one line of benchmarks/results/tenth.jsonl, so a run that
was stopped goes on where it was; delete the file to begin anew.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.cells import Cells, mean_of, spread
from benchmarks.common import clone, development, models_folder, predictions
from benchmarks.lowrank import SEEDS
from benchmarks.lowrank_quality import Judge, judged
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration
from laconic.calibrate.corpus import read
from laconic.compress import Step
from laconic.model import LanguageModel, load
from laconic.progress import silent
from laconic.recipe import read_recipe
from laconic.recipe.flow import Sampling
from laconic.recover.training import Training

CELLS = Cells("tenth", ("way", "seed"))
BEGIN = "<!-- made by `python -m benchmarks tenth_tables` -->"
MODEL, SOURCE = "minilm-sst2", "glue/sst2"
RECIPES = Path(__file__).parents[1] / "laconic" / "recipes"
WAYS = {"factors of 16 bits": "sst2-distil.yaml", "factors of 6 bits": "sst2-tenth.yaml"}
TAUGHT = ", taught"


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="some of the ways")
    options = parser.parse_args(argv)
    lm = load(str(models_folder() / MODEL))
    rows = development(lm, SOURCE)
    judge = Judge(lm, rows, predictions(lm, rows))
    for way, seed in CELLS.missing((f"{way}{TAUGHT}", seed) for seed in options.seeds for way in options.ways):
        measure(judge, way.removesuffix(TAUGHT), seed)
    print(f"{CELLS}; `python -m benchmarks tenth_tables` makes the tables")


def measure(judge: Judge, way: str, seed: int) -> None:
    """Both cells of one recipe and one seed."""
    recipe = read_recipe(RECIPES / WAYS[way])
    data = Sampling(samples=recipe.samples, seed=seed).of(judge.lm, read(SOURCE, "train"), silent)
    first, *later = recipe.steps
    begun = time.perf_counter()
    small = replace(clone(judge.lm), original=judge.lm)
    outcome = first.apply(small, data)
    seconds = time.perf_counter() - begun
    untaught = [step for step in later if not isinstance(step, Training)]
    for name, steps in ((way, untaught), (f"{way}{TAUGHT}", later)):
        here = clone(small)
        begun = time.perf_counter()
        nbytes = after(here, steps, data, outcome.nbytes)
        sizes = {"bytes": nbytes, "dense_bytes": outcome.dense_nbytes}
        took = seconds + time.perf_counter() - begun
        CELLS.add((name, seed), {**sizes, "seconds": took, **judged(judge, here)})


def after(lm: LanguageModel, steps: Sequence[Step], data: Calibration, nbytes: int) -> int:
    """Take the steps; the bytes of the targeted matrices, which are `nbytes` where none changes them."""
    for step in steps:
        outcome = step.apply(lm, data)
        nbytes += outcome.nbytes - outcome.dense_nbytes
    return nbytes


def write_tables(argv: Sequence[str]) -> None:
    """Write what is measured by now into docs/recovery.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    ways = [name for way in WAYS for name in (way, f"{way}{TAUGHT}") if CELLS.where(way=name)]
    if not ways:
        return
    dense = CELLS.where(way=ways[0])[0]
    lines = [
        "| | of the bytes | accuracy | KL, nats | minutes |",
        "|---|---:|---:|---:|---:|",
        f"| dense | 100 % | {dense['dense_metric']:.4f} | | |",
    ]
    for way in ways:
        here = CELLS.where(way=way)
        accuracy, kl = (spread([cell[what] for cell in here], 4) for what in ("metric", "kl"))
        share = mean_of(here, "bytes") / here[0]["dense_bytes"]
        lines.append(f"| {way} | {share:.1%} | {accuracy} | {kl} | {mean_of(here, 'seconds') / 60:.1f} |")
    replace_between(ROOT / "docs/recovery.md", "\n".join([*lines, ""]), BEGIN)
