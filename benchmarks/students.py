"""Study 003's student of three random blocks: distilled from minilm-sst2, and trained on the task alone.

The recipes are in laconic/recipes/seeds/. Training goes three times over 10,000 rows of SST-2, with 500 others held
out. Evaluated on the whole development set. A third variant starts from blocks and embeddings of the teacher, and is
distilled like the first. Times are for a batch of 32 × 32 tokens, teacher and student in turn. Each finished cell is
one line of benchmarks/results/students.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from benchmarks.common import Cells, load_model, spread
from benchmarks.latency import alternate, saved_bytes
from benchmarks.lowrank import SEEDS, Reference, evaluate
from benchmarks.recovering import drawn
from benchmarks.tables import ROOT, replace_between
from laconic.compress import Step
from laconic.model import LanguageModel
from laconic.recipe import read_recipe
from laconic.recipe.flow import apply_steps
from laconic.recover import Student
from laconic.recover.training import Training

MODEL, SOURCE = "minilm-sst2", "glue/sst2"
CELLS = Cells("students", ("way", "seed"))
BEGIN = "<!-- made by `python -m benchmarks students_tables` -->"
RECIPES = Path(__file__).parents[1] / "laconic" / "recipes" / "seeds"
ROWS, EPOCHS = 10_000, 3.0
SHAPE = (32, 32)

VARIANTS = ("task alone", "taught", "taught, from the teacher's blocks")


def steps_of(variant: str, seed: int) -> list[Step]:
    """The steps of a shipped recipe, on fewer rows."""
    recipe = read_recipe(RECIPES / ("kd-task-alone.yaml" if variant == "task alone" else "kd-student.yaml"))
    return [_here(step, variant, seed) for step in recipe.steps]


def _here(step: Step, variant: str, seed: int) -> Step:
    if isinstance(step, Training):
        return replace(step, rows=ROWS, epochs=EPOCHS)
    if isinstance(step, Student) and variant == "taught, from the teacher's blocks":
        return Student(blocks=(1, 3, 5))
    return replace(step, seed=seed) if isinstance(step, Student) else step


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--ways", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="some of the ways")
    options = parser.parse_args(argv)
    missing = CELLS.missing((variant, seed) for seed in options.seeds for variant in options.ways)
    teacher = load_model(MODEL)
    reference = Reference.of(teacher, SOURCE)
    for variant, seed in missing:
        begun = time.perf_counter()
        student, _ = apply_steps(teacher.copy(), steps_of(variant, seed), drawn(teacher, SOURCE, seed))
        seconds = time.perf_counter() - begun
        CELLS.add((variant, seed), {**evaluate(reference, student), **costs(teacher, student), "seconds": seconds})
        print(f"{variant}, seed {seed}: {seconds:.0f} s", flush=True)
    print(f"{CELLS}; `python -m benchmarks students_tables` makes the table")


def costs(teacher: LanguageModel, student: LanguageModel) -> dict:
    """Parameters, bytes and milliseconds of both."""
    dense_ms, ms = alternate(teacher, student, *SHAPE)
    return {
        "parameters": student.size()[0],
        "dense_parameters": teacher.size()[0],
        "file_bytes": saved_bytes(student),
        "dense_file_bytes": saved_bytes(teacher),
        "ms": ms,
        "dense_ms": dense_ms,
    }


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/recovery.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    every = list(CELLS)
    if not every:
        return
    one = every[0]
    dense = mean(cell["dense_ms"][1] for cell in every)
    lines = [
        "| | accuracy | KL, nats | parameters, million | file, MB | samples a second |",
        "|---|---:|---:|---:|---:|---:|",
        f"| teacher | {one['dense_metric']:.3f} | | {one['dense_parameters'] / 1e6:.1f} "
        f"| {one['dense_file_bytes'] / 1e6:.1f} | {1e3 * SHAPE[0] / dense:.0f} |",
        *(row(variant, CELLS.where(way=variant)) for variant in VARIANTS if CELLS.where(way=variant)),
    ]
    replace_between(ROOT / "docs/figures/recovery.md", "\n".join([*lines, ""]), BEGIN)


def row(variant: str, here: list[dict]) -> str:
    """One line of the table."""
    accuracy, kl = (spread([cell[what] for cell in here], 3) for what in ("metric", "kl"))
    size = f"{here[0]['parameters'] / 1e6:.1f} | {here[0]['file_bytes'] / 1e6:.1f}"
    speed = 1e3 * SHAPE[0] / mean(cell["ms"][1] for cell in here)
    return f"| {variant} | {accuracy} | {kl} | {size} | {speed:.0f} |"
