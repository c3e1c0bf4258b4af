"""Quality won back by `correct`, `finetune` and `distil` on two compressed encoders.

Calibration: 128 training rows. Training: one pass over 4,000 rows, with 200 others held out. Evaluated on the whole
development set: KL divergence from the dense model (nats), the task's metric, seconds. Each finished cell is one line
of benchmarks/results/recover_quality.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import mean

from benchmarks.common import Cells, clone, load_model, mean_of, quality
from benchmarks.lowrank import METRICS, MODELS, SEEDS, Reference, evaluate
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.compress import Compress, Narrow, Shorten, Step
from laconic.methods import Drone, Fwsvd, KfacSvd, Magnitude, Svd
from laconic.model import LanguageModel
from laconic.recover import Correct, Distil, Finetune

CALIBRATION_ROWS = 128
FROZEN = ("*embeddings*",)
TRAINING = {"rows": 4000, "epochs": 1.0, "held_out": 200, "evaluations": 4, "freeze": FROZEN}

STARTS: dict[str, Step] = {
    **{
        f"{name}, {keep}": Compress(method=method, keep=keep)
        for name, method in {"svd": Svd(), "fwsvd": Fwsvd(), "drone": Drone(), "kfac-svd": KfacSvd()}.items()
        for keep in (0.5, 0.35)
    },
    "magnitude, 80 % zeros": Compress(method=Magnitude(sparsity=0.8), allocate="global"),
    "heads, 50 %": Narrow(heads=0.5),
    "blocks, −3 of 6": Shorten(drop=3, select="dp"),
}
"""The rows of the table."""

NEAR = ("drone, 0.5", "kfac-svd, 0.5", "kfac-svd, 0.35", "heads, 50 %")
"""Rows so close to the dense model that a learning rate of 1e-4 would move them away from it."""

VARIANTS = ("as it is", "correct", "finetune", "distil")
"""The columns of the table."""


def step_of(name: str, start: str) -> Step | None:
    """The step of one column; None for the compressed model itself."""
    learning_rate = 3e-5 if start in NEAR else 1e-4
    steps = {
        "correct": Correct(),
        "finetune": Finetune(**TRAINING, learning_rate=learning_rate),
        "distil": Distil(**TRAINING, learning_rate=learning_rate, hidden=0.1),
    }
    return steps.get(name)


BEGIN = "<!-- made by `python -m benchmarks recover_tables` -->"
CELLS = Cells("recover_quality", ("model", "seed", "start", "way"))


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS), help="some of the rows")
    parser.add_argument("--ways", nargs="+", choices=VARIANTS, default=VARIANTS, help="some of the columns")
    options = parser.parse_args(argv)
    for seed in options.seeds:
        for name in [options.only] if options.only else MODELS:
            measure(name, seed, list(product(options.starts, options.ways)))
    print(f"{CELLS}; `python -m benchmarks recover_tables` makes the tables")


def measure(name: str, seed: int, wanted: Sequence[tuple[str, str]]) -> None:
    """Measure every cell of one model and one seed that has no line yet."""
    missing = CELLS.missing((name, seed, start, variant) for start, variant in wanted)
    if not missing:
        return
    lm = load_model(name)
    data = drawn(lm, MODELS[name], seed)
    reference = Reference.of(lm, MODELS[name])
    for start in dict.fromkeys(start for *_, start, _ in missing):
        compressed = replace(clone(lm), original=lm)
        outcome = STARTS[start].apply(compressed, data)
        compressed = replace(compressed, dropped=(outcome.dropped,))
        for column in [column for *_, other, column in missing if other == start]:
            small, step, begun = clone(compressed), step_of(column, start), time.perf_counter()
            if step is not None:
                step.apply(small, data)
            seconds = time.perf_counter() - begun
            sizes = {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes, "seconds": seconds}
            CELLS.add((name, seed, start, column), {**sizes, **evaluate(reference, small)})
            print(f"{name}, seed {seed}: {start}, {column}: {seconds:.0f} s", flush=True)


def drawn(lm: LanguageModel, source: str, seed: int) -> Calibration:
    """The training split, and the calibration rows that are drawn from it."""
    corpus = read(source, "train")
    some = batches(lm, sample(corpus, CALIBRATION_ROWS, seed), batch_size=16, max_length=128)
    return Calibration(some, seed=seed, corpus=corpus)


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/recovery.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    replace_between(ROOT / "docs/figures/recovery.md", "\n".join(filter(None, map(table, MODELS))), BEGIN)


def table(name: str) -> str:
    """KL / metric of each start and each variant, means over the seeds."""
    mine = CELLS.where(model=name)
    if not mine:
        return ""
    seeds = len({cell["seed"] for cell in mine})
    lines = [
        f"**{name}** ({METRICS[name]} {mine[0]['dense_metric']:.3f} dense; seeds: {seeds}): KL to the dense model / "
        f"{METRICS[name]}",
        "",
        f"| | bytes | {' | '.join(VARIANTS)} | seconds |",
        "|---|---|" + "---|" * (len(VARIANTS) + 1),
    ]
    for start in STARTS:
        rows = {name: [c for c in mine if (c["start"], c["way"]) == (start, name)] for name in VARIANTS}
        present = [name for name in VARIANTS if rows[name]]
        if present:
            best = min(present, key=lambda name: mean_of(rows[name], "kl"))
            entries = [quality(rows[name], name == best) for name in VARIANTS]
            kept = mean(cell["bytes"] / cell["dense_bytes"] for cell in rows[present[0]])
            seconds = " / ".join(
                f"{mean(c['seconds'] for c in rows[name]):.0f}" for name in present if name != VARIANTS[0]
            )
            lines.append(f"| {start} | {kept:.0%} | {' | '.join(entries)} | {seconds} |")
    return "\n".join([*lines, ""])
