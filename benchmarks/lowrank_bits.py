"""Low rank whose factors are stored in few bits: higher ranks in the same bytes, on two fine-tuned encoders.

The best variant of `lowrank_quality`, with ranks raised by the bytes that six-bit factors save; then GPTQ rounds the
factors, with the same 128 calibration rows. Evaluated on the whole development set. Each finished cell is one line of
benchmarks/results/lowrank_bits.jsonl. An interrupted run continues; to start again, delete the file.
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
    spread,
)
from benchmarks.lowrank import CALIBRATION_ROWS, METRICS, MODELS, SEEDS, VARIANTS, Reference, evaluate
from benchmarks.lowrank import CELLS as WHOLE
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import collect_stats
from laconic.compress import Compress
from laconic.methods import Gptq

CELLS = Cells("lowrank_bits", ("model", "seed", "keep"))
BEGIN = "<!-- made by `python -m benchmarks lowrank_bits_tables` -->"
BEST = "… + anchored"
KEEPS = (0.25, 0.35, 0.1)
ROUNDED = Gptq(bits=6, group_size=64, symmetric=True)
BITS = 6.3
"""Bits of a rounded weight with its share of a scale, out of 16; a rank that is no multiple of 64 needs a few more."""


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--keeps", nargs="+", type=float, choices=KEEPS, default=list(KEEPS), help="some of the sizes")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else MODELS:
        for seed in SEEDS:
            measure(name, seed, options.keeps)


def measure(name: str, seed: int, keeps: Sequence[float]) -> None:
    """Measure every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing((name, seed, keep) for keep in keeps)
    if not missing:
        return
    lm = load_model(name)
    reference = Reference.of(lm, MODELS[name])
    calibrating = calibration(lm, MODELS[name], CALIBRATION_ROWS, seed)
    stats = collect_stats(lm, calibrating, VARIANTS[BEST].needs, lm.sites())
    for key in track(missing, f"{name}, seed {seed}"):
        *_, keep = key
        small = clone(lm)
        first = replace(VARIANTS[BEST], keep=keep * 16 / BITS).apply_with(small, stats, calibrating)
        outcome = Compress(method=ROUNDED).apply(small, calibrating)
        sizes = {"bytes": outcome.nbytes, "dense_bytes": first.dense_nbytes}
        CELLS.add(key, {**sizes, **evaluate(reference, small)})


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/low-rank.md."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    lines = ["| | keep | of the bytes | factors | KL, nats | metric |", "|---|---:|---:|---|---:|---:|"]
    for name in MODELS:
        for keep in sorted(KEEPS, reverse=True):
            whole = WHOLE.where(model=name, way=BEST, keep=keep, rows=CALIBRATION_ROWS)
            mine = CELLS.where(model=name, keep=keep)
            lines += [_row(name, keep, "16 bits", whole)] if whole else []
            lines += [_row(name, keep, "6 bits", mine)] if mine else []
    replace_between(ROOT / "docs/figures/low-rank.md", "\n".join([*lines, ""]), BEGIN)


def _row(name: str, keep: float, factors: str, here: list[dict]) -> str:
    share = mean(cell["bytes"] for cell in here) / here[0]["dense_bytes"]
    kl, metric = (spread([cell[what] for cell in here], 4) for what in ("kl", "metric"))
    said = f"{name} ({METRICS[name]} {here[0]['dense_metric']:.4f} dense)"
    return f"| {said} | {keep} | {share:.1%} | {factors} | {kl} | {metric} |"
