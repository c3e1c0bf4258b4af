"""Quality of pruning single weights on two fine-tuned encoders, without any training afterwards.

Calibration: 256 training rows. Judged on the whole development set: KL divergence from the dense model (nats), the
task's metric, the bytes of the targeted matrices, those of the saved file, and seconds, without those of the first
statistics, which all ways share. Each finished cell is one line of benchmarks/results/prune_quality.jsonl, so a run
that was stopped goes on where it was; delete the file to begin anew.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress import track

from benchmarks.cells import Cells
from benchmarks.common import calibration, clone, development, models_folder, predictions
from benchmarks.latency import saved_bytes
from benchmarks.lowrank import MODELS, SEEDS
from benchmarks.lowrank_quality import Judge, judged
from benchmarks.pruning import CALIBRATION_ROWS, SIZES, WAYS, sizes_of
from laconic.calibrate import Calibration, LayerStats, Statistic, collect_stats
from laconic.model import LanguageModel, load

CELLS = Cells("prune_quality", ("model", "rows", "seed", "way", "size"))


@dataclass(frozen=True)
class Ground:
    """A dense model with its judge, its calibration data, and what was measured of every matrix on it."""

    judge: Judge
    data: Calibration
    known: dict[str, LayerStats]

    @property
    def lm(self) -> LanguageModel:
        return self.judge.lm


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=CALIBRATION_ROWS, help="calibration rows")
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sparsities and patterns")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="some of the ways")
    options = parser.parse_args(argv)
    wanted = [(way, size) for size in options.sizes for way in options.ways if size in sizes_of(way)]
    for name in [options.only] if options.only else MODELS:
        for seed in options.seeds:
            measure(name, seed, options.rows, wanted)
    print(f"{CELLS}; `python -m benchmarks prune_tables` makes the tables")


def measure(name: str, seed: int, rows: int, wanted: Sequence[tuple[str, str]]) -> None:
    """Every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing((name, rows, seed, way, size) for way, size in wanted)
    if not missing:
        return
    ground = prepared(name, seed, rows, every_need([(way, size) for *_, way, size in missing]))
    for key in track(missing, f"{name}, seed {seed}"):
        *_, way, size = key
        CELLS.add(key, blind(name, way, size) or solved(ground, way, size))


def prepared(name: str, seed: int, rows: int, needs: frozenset[type[Statistic]]) -> Ground:
    """One model, measured once."""
    lm = load(str(models_folder() / name))
    data = development(lm, MODELS[name])
    calibrating = calibration(lm, MODELS[name], rows, seed)
    return Ground(
        Judge(lm, data, predictions(lm, data)), calibrating, collect_stats(lm, calibrating, needs, lm.sites())
    )


def every_need(wanted: Sequence[tuple[str, str]]) -> frozenset[type[Statistic]]:
    """The statistics that any of these asks for."""
    return frozenset().union(*(step.needs for way, size in wanted for step in WAYS[way].steps(size)))


def solved(ground: Ground, way: str, size: str) -> dict:
    """One cell, measured."""
    small = clone(ground.lm)
    start = time.perf_counter()
    first, *later = WAYS[way].steps(size)
    outcome = first.solve(small, ground.known, ground.data)
    dense = outcome.dense_nbytes
    for step in later:
        known = collect_stats(small, ground.data, step.needs, small.sites())
        outcome = step.solve(small, known, ground.data)
    seconds = time.perf_counter() - start
    sizes = {"bytes": outcome.nbytes, "dense_bytes": dense, "file_bytes": saved_bytes(small), "seconds": seconds}
    return {**sizes, **zeros(small), **judged(ground.judge, small)}


def zeros(small: LanguageModel) -> dict[str, float]:
    """The fraction of zeros over all targeted matrices, and of the matrix that has most."""
    counts = [(int((site.weight() == 0).sum()), site.shape[0] * site.shape[1]) for site in small.sites()]
    whole = sum(gone for gone, _ in counts) / sum(size for _, size in counts)
    return {"sparsity": whole, "largest_sparsity": max(gone / size for gone, size in counts)}


def blind(name: str, way: str, size: str) -> dict | None:
    """The same cell of another seed, where the way looks at no data and so knows no seed."""
    if any(step.needs_data for step in WAYS[way].steps(size)):
        return None
    return next(iter(CELLS.where(model=name, way=way, size=size)), None)
