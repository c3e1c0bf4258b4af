"""Quality of quantizing five models, and of combinations with pruning and low rank, without any training.

Calibration: 128 training rows. Judged on held-out rows: KL divergence from the dense model (nats per prediction), the
task's metric or perplexity, the bytes of the targeted matrices and of the saved file. Each finished cell is one line
of benchmarks/results/quantize_quality.jsonl, so a run that was stopped goes on where it was; delete it to begin anew.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.progress import track
from torch.nn.functional import cross_entropy

from benchmarks.cells import Cells
from benchmarks.common import clone, development, kl, models_folder, predictions
from benchmarks.latency import saved_bytes
from benchmarks.lowrank import SEEDS
from benchmarks.lowrank_quality import metric
from benchmarks.quantizing import BITS, CALIBRATION_ROWS, COMBINATIONS, GROUNDS, GROUPS, METHODS, Steps, alone
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.calibrate.corpus import batches, read, sample
from laconic.compress import Compress
from laconic.model import Batch, LanguageModel, Predictions, load
from laconic.numerics.distributions import CATEGORICAL
from laconic.store import materialize

CELLS = Cells("quantize_quality", ("model", "seed", "way"))


@dataclass(frozen=True)
class Judge:
    """A dense model, rows that nothing was fitted on, and what it says about them."""

    lm: LanguageModel
    rows: list[Batch]
    dense: Predictions
    calibration: Calibration


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(GROUNDS), nargs="+", help="some of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, "combinations"], help="some of the methods")
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=list(BITS), help="some of the bits")
    options = parser.parse_args(argv)
    chosen = options.methods or [*METHODS, "combinations"]
    wanted = {
        f"{name}, {bits} bits, {group}": alone(name, bits, group)
        for name in METHODS
        if name in chosen
        for bits in options.bits
        for group in GROUPS
    }
    if "combinations" in chosen:
        wanted |= COMBINATIONS
    for model in options.only or GROUNDS:
        for seed in options.seeds:
            measure(model, seed, wanted)
    print(f"{CELLS}; `python -m benchmarks quantize_tables` makes the tables")


def measure(model: str, seed: int, wanted: dict[str, Steps]) -> None:
    """Every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing((model, seed, way) for way in wanted)
    if not missing:
        return
    judge = prepared(model, seed)
    steps = {way: wanted[way](8 * judge.lm.dtype.itemsize) for *_, way in missing}
    needs = frozenset().union(*(first.needs for first, *_ in steps.values()))
    known = collect_stats(judge.lm, judge.calibration, needs, judge.lm.sites())
    for key in track(missing, f"{model}, seed {seed}"):
        *_, way = key
        CELLS.add(key, blind(model, way, steps[way]) or solved(judge, known, steps[way]))


def prepared(model: str, seed: int) -> Judge:
    """One model with what it is calibrated and judged on."""
    ground, lm = GROUNDS[model], load(str(models_folder() / model))
    corpus = read(ground.source, "train")
    rows = development(lm, ground.source, ground.rows)
    if ground.halves:
        held_out = replace(corpus, examples=corpus.examples[-(ground.rows or 0) :])
        rows = batches(lm, held_out, batch_size=16, max_length=128)
        corpus = replace(corpus, examples=corpus.examples[: len(corpus.examples) // 2])
    drawn = batches(lm, sample(corpus, CALIBRATION_ROWS, seed), batch_size=16, max_length=128)
    return Judge(lm, rows, predictions(lm, rows), Calibration(drawn, seed=seed))


def solved(judge: Judge, known: dict[str, LayerStats], steps: Sequence[Compress]) -> dict:
    """One cell, measured."""
    small = clone(judge.lm)
    start = time.perf_counter()
    outcome = steps[0].solve(small, known, judge.calibration)
    dense = outcome.dense_nbytes
    for step in steps[1:]:
        outcome = step.apply(small, judge.calibration)
    seconds = time.perf_counter() - start
    sizes = {"bytes": outcome.nbytes, "dense_bytes": dense, "file_bytes": saved_bytes(small), "seconds": seconds}
    # Made plain it computes the same, and decodes no matrix at every batch.
    now = predictions(replace(small, model=materialize(small.model)), judge.rows)
    return {**sizes, "kl": kl(judge.dense, now), "metric": quality(now), "dense_metric": quality(judge.dense)}


def quality(predicted: Predictions) -> float:
    """Accuracy, correlation, or perplexity of what is said token by token."""
    if predicted.distribution is CATEGORICAL and predicted.values.shape[-1] > 2:
        assert predicted.labels is not None
        return math.exp(cross_entropy(predicted.values.float(), predicted.labels).item())
    return metric(predicted)


def blind(model: str, way: str, steps: Sequence[Compress]) -> dict | None:
    """The same cell of another seed, where the way looks at no data and so knows no seed."""
    if any(step.needs_data for step in steps):
        return None
    return next(iter(CELLS.where(model=model, way=way)), None)
