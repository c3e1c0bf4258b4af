"""Compare one budget that is divided among matrices and methods together with the best plan of each single method.

The KL divergence from the dense model on rows that were not used for calibration, in nats per prediction, at three
fractions of the bytes of the blocks. All plans are made by `allocate: spectrum` from the same 64 rows, and judged on 64
others. CPU seconds are those of the whole step, measuring included. Each finished cell is one line of
benchmarks/results/several_methods.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.progress import track

from benchmarks.common import Cells, in_bold, load_model, mean_of
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.compress import Compress
from laconic.compress.allocators.corrected import ALLOCATED
from laconic.compress.kl_metric import KLMetric
from laconic.errors import UserError
from laconic.methods import AnyOf
from laconic.methods.registry import method_text, parse_method
from laconic.model import LanguageModel

MODELS = {
    "bart-g2p-us": "g2p",
    "stories260K": "tinystories",
    "mico-tinyllama-1m": "tinystories",
}
"""The source of the rows of each model."""
KEEPS = (0.2, 0.125, 0.06)
ROWS, MAX_LENGTH = 64, 96
SEEDS = (0, 1, 2)
CELLS = Cells("several_methods", ("model", "seed", "keep", "method"))
ALL = AnyOf()
METHODS = (*map(method_text, ALL.methods), ALL.name)
BEGIN = "<!-- several methods, made by `python -m benchmarks several_methods_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), help="some of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    for name in options.only:
        for seed in options.seeds:
            cases = [(name, seed, keep, method) for keep in KEEPS for method in METHODS]
            missing = CELLS.missing(cases)
            if missing:
                lm, data, metric = load_case(name, seed)
                for key in track(missing, f"{name}, seed {seed}"):
                    CELLS.add(key, measure_cell(lm, data, metric, *key[2:]))
    print(f"{CELLS}; `python -m benchmarks several_methods_tables` makes the tables")


def load_case(name: str, seed: int) -> tuple[LanguageModel, Calibration, KLMetric]:
    """A model, its calibration data, and the KL divergence on other rows."""
    lm = load_model(name)
    corpus = sample(read(MODELS[name], "train"), 2 * ROWS, seed)
    parts = [replace(corpus, examples=corpus.examples[part]) for part in (slice(ROWS), slice(ROWS, None))]
    first, last = (batches(lm, part, batch_size=16, max_length=MAX_LENGTH) for part in parts)
    return lm, Calibration(first, seed=seed), KLMetric(lm, last)


def measure_cell(lm: LanguageModel, data: Calibration, metric: KLMetric, keep: float, method: str) -> dict:
    """Measure one cell; its KL is none where the method has no size so small."""
    small, start = lm.shallow_copy(), time.process_time()
    try:
        step = Compress(method=parse_method(method, "method"), keep=keep, allocate="spectrum")
        outcome = step.apply(small, data)
    except UserError as error:
        return {"kl": None, "reason": str(error)}
    seconds = time.process_time() - start
    kept = sum(outcome.after.values()) / sum(outcome.before.values())
    return {"kl": metric(small), "kept": kept, "cpu_seconds": seconds, "allocated": outcome.found.get(ALLOCATED)}


def write_tables(argv: Sequence[str]) -> None:
    """Write the table of all finished cells into docs/methods/combination.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    replace_between(ROOT / "docs/methods/combination.md", table(), BEGIN)


def table() -> str:
    """One row for each model and fraction, one column for each method: mean KL and CPU seconds; the least is bold."""
    titles = [f"`{method}`" for method in METHODS]
    lines = [f"| model | of the bytes | {' | '.join(titles)} |", "|---|---:|" + "---:|" * len(METHODS)]
    for name in MODELS:
        for keep in KEEPS:
            here = {method: CELLS.where(model=name, keep=keep, method=method) for method in METHODS}
            done = {m: cells for m, cells in here.items() if cells and all(cell["kl"] is not None for cell in cells)}
            kls = {method: mean_of(cells, "kl") for method, cells in done.items()}
            entries = [
                f"{in_bold(f'{kls[m]:.3g}', kls[m] == min(kls.values()))} ({mean_of(done[m], 'cpu_seconds'):.0f} s)"
                if m in done
                else "–"
                for m in METHODS
            ]
            if kls:
                lines.append(f"| {name} | {keep:.1%} | {' | '.join(entries)} |")
    return "\n".join([*lines, ""])
