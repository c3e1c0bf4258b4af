"""Quality of pruning single weights on two fine-tuned encoders, without training after that.

Calibration: 256 training rows. Evaluated on the whole development set: KL divergence from the dense model (nats), the
task's metric, the bytes of the targeted matrices, those of the saved file, and seconds, without those of the first
statistics, which all variants share. Each finished cell is one line of benchmarks/results/prune_quality.jsonl. An
interrupted run continues; to start again, delete the file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.progress import track

from benchmarks.common import Cells, calibration, clone, load_model
from benchmarks.latency import saved_bytes
from benchmarks.lowrank import MODELS, SEEDS, Reference, evaluate
from laconic.calibrate import Calibration, LayerStats, Statistic, collect_stats
from laconic.compress import Compress
from laconic.methods import KfacPrune, Magnitude, SparseGpt, Wanda
from laconic.methods.prune.base import UnstructuredPruning
from laconic.model import LanguageModel

CALIBRATION_ROWS = 256
SPARSITIES = ("0.5", "0.6", "0.7", "0.8", "0.9")
PATTERNS = ("2:4", "4:8")
SIZES = (*SPARSITIES, *PATTERNS)


@dataclass(frozen=True)
class Variant:
    """A setup of pruning; with several `shots`, statistics are collected again before each."""

    step: Compress
    shots: int = 1

    def steps(self, size: str) -> list[Compress]:
        """The steps that end at `size`, a sparsity or a pattern; each shot keeps the same fraction of weights."""
        method = self.step.method
        assert isinstance(method, UnstructuredPruning)
        if size in PATTERNS:
            return [replace(self.step, method=replace(method.without_size(), pattern=size), allocate="uniform")]
        kept = 1 - float(size)
        shots = [1 - kept ** (shot / self.shots) for shot in range(1, self.shots)]
        return [replace(self.step, method=method.with_sparsity(round(s, 4))) for s in (*shots, float(size))]


def _globally(method: UnstructuredPruning, shots: int = 1, anchored: bool = False) -> Variant:
    return Variant(Compress(method=method, allocate="global", anchored=anchored), shots)


VARIANTS: dict[str, Variant] = {
    "magnitude": _globally(Magnitude(sparsity=0.5)),
    "wanda": Variant(Compress(method=Wanda(sparsity=0.5))),
    "sparsegpt": Variant(Compress(method=SparseGpt(sparsity=0.5))),
    "kfac-prune": _globally(KfacPrune(sparsity=0.5)),
    "kfac-prune, OBD": _globally(KfacPrune(sparsity=0.5, score="obd")),
    "kfac-prune, OBS": _globally(KfacPrune(sparsity=0.5, score="obs")),
    "… in two shots": _globally(KfacPrune(sparsity=0.5), shots=2),
    "… in three shots": _globally(KfacPrune(sparsity=0.5), shots=3),
    "… anchored": _globally(KfacPrune(sparsity=0.5), anchored=True),
}
"""The variants on attention and feed-forward matrices; … stands for kfac-prune with its defaults."""

IN_PATTERNS = ("magnitude", "wanda", "sparsegpt", "kfac-prune", "kfac-prune, OBD", "kfac-prune, OBS")
"""The variants that differ under a pattern, which fixes the number of zeros of every matrix."""


def sizes_of(variant: str) -> tuple[str, ...]:
    """The sizes that `variant` is measured at."""
    return SIZES if variant in IN_PATTERNS else SPARSITIES


CELLS = Cells("prune_quality", ("model", "rows", "seed", "way", "size"))


@dataclass(frozen=True)
class Setup:
    """A dense model with its reference, its calibration data, and the statistics of every matrix."""

    reference: Reference
    data: Calibration
    stats: dict[str, LayerStats]

    @property
    def lm(self) -> LanguageModel:
        return self.reference.lm


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=CALIBRATION_ROWS, help="calibration rows")
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sparsities and patterns")
    parser.add_argument("--ways", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="some of the ways")
    options = parser.parse_args(argv)
    wanted = [(variant, size) for size in options.sizes for variant in options.ways if size in sizes_of(variant)]
    for name in [options.only] if options.only else MODELS:
        for seed in options.seeds:
            measure(name, seed, options.rows, wanted)
    print(f"{CELLS}; `python -m benchmarks prune_tables` makes the tables")


def measure(name: str, seed: int, rows: int, wanted: Sequence[tuple[str, str]]) -> None:
    """Measure every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing((name, rows, seed, variant, size) for variant, size in wanted)
    if not missing:
        return
    setup = load_setup(name, seed, rows, all_needs([(variant, size) for *_, variant, size in missing]))
    for key in track(missing, f"{name}, seed {seed}"):
        *_, variant, size = key
        CELLS.add(key, copy_other_seed(name, variant, size) or measure_cell(setup, variant, size))


def load_setup(name: str, seed: int, rows: int, needs: frozenset[type[Statistic]]) -> Setup:
    """Load a model and collect its statistics."""
    lm = load_model(name)
    data = calibration(lm, MODELS[name], rows, seed)
    return Setup(Reference.of(lm, MODELS[name]), data, collect_stats(lm, data, needs, lm.sites()))


def all_needs(wanted: Sequence[tuple[str, str]]) -> frozenset[type[Statistic]]:
    """The statistics that any of `variants` needs."""
    return frozenset().union(*(step.needs for variant, size in wanted for step in VARIANTS[variant].steps(size)))


def measure_cell(setup: Setup, variant: str, size: str) -> dict:
    """Measure one cell."""
    small = clone(setup.lm)
    start = time.perf_counter()
    first, *later = VARIANTS[variant].steps(size)
    outcome = first.apply_with(small, setup.stats, setup.data)
    dense = outcome.dense_nbytes
    for step in later:
        stats = collect_stats(small, setup.data, step.needs, small.sites())
        outcome = step.apply_with(small, stats, setup.data)
    seconds = time.perf_counter() - start
    sizes = {"bytes": outcome.nbytes, "dense_bytes": dense, "file_bytes": saved_bytes(small), "seconds": seconds}
    return {**sizes, **zeros(small), **evaluate(setup.reference, small)}


def zeros(small: LanguageModel) -> dict[str, float]:
    """The fraction of zeros over all targeted matrices, and the largest fraction of one matrix."""
    counts = [(int((site.weight() == 0).sum()), site.shape[0] * site.shape[1]) for site in small.sites()]
    whole = sum(gone for gone, _ in counts) / sum(size for _, size in counts)
    return {"sparsity": whole, "largest_sparsity": max(gone / size for gone, size in counts)}


def copy_other_seed(name: str, variant: str, size: str) -> dict | None:
    """The cell of another seed, if the variant uses no data and all seeds give the same result."""
    if any(step.needs_data for step in VARIANTS[variant].steps(size)):
        return None
    return next(iter(CELLS.where(model=name, way=variant, size=size)), None)
