"""Quality of quantizing five models, and of combinations with pruning and low rank, without any training.

Calibration: 128 training rows. Evaluated on held-out rows: KL divergence from the dense model (nats per prediction),
the task's metric or perplexity, the bytes of the targeted matrices and of the saved file. Each finished cell is one
line of benchmarks/results/quantize_quality.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.progress import track
from torch.nn.functional import cross_entropy

from benchmarks.common import Cells, clone, development, kl, load_model, predictions
from benchmarks.latency import saved_bytes
from benchmarks.lowrank import SEEDS, metric
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.compress import Compress
from laconic.methods import Awq, Gptq, KfacPrune, KfacSvd, KMeans, Plus, Rtn, Yaqa
from laconic.methods.quantize.base import QuantizationMethod
from laconic.model import Batch, LanguageModel, Predictions
from laconic.numerics.distributions import CATEGORICAL
from laconic.store import materialize

CALIBRATION_ROWS = 128
BITS = (8, 4, 3, 2)
GROUPS = (32, 64, 128, "channel")
METHODS: dict[str, QuantizationMethod] = {
    "rtn": Rtn(),
    "gptq": Gptq(),
    "yaqa": Yaqa(),
    "awq": Awq(),
    "kmeans": KMeans(),
}
"""Methods by their name in the tables."""

USUAL = Gptq(group_size=64)
"""The method that quantizes in combinations."""

Steps = Callable[[int], list[Compress]]
"""A function from the bits of a stored weight to the steps."""


@dataclass(frozen=True)
class TestSet:
    """The source of a model's rows, its metric, and how many test rows are used; None for the whole development split.

    halves: the source has no splits; rows of its first half calibrate, and the last rows test.
    """

    source: str
    metric: str
    rows: int | None = None
    halves: bool = False


TEST_SETS = {
    "minilm-sst2": TestSet("glue/sst2", "accuracy"),
    "minilm-stsb": TestSet("glue/stsb", "Pearson"),
    "bart-g2p-us": TestSet("g2p", "perplexity", rows=500),
    "mico-tinyllama-1m": TestSet("tinystories", "perplexity", rows=100, halves=True),
    "stories260K": TestSet("tinystories", "perplexity", rows=100, halves=True),
}


def alone(name: str, bits: int, group: int | str) -> Steps:
    """The steps of one method alone."""
    method = replace(METHODS[name], bits=bits, group_size=group)
    return lambda whole: [Compress(method=method)]


def mixed(bits: float) -> Steps:
    """Mixed bits, chosen by the predicted loss, in the bytes of `bits` bits with their scales."""
    return lambda whole: [Compress(method=USUAL, keep=_with_grids(bits) / whole, allocate="spectrum")]


def _with_grids(bits: float) -> float:
    """Bits for each weight, including a scale of 16 bits and a zero point for every 64 weights."""
    return bits + (16 + bits) / 64


def _bits(bits: int) -> Steps:
    return lambda whole: [Compress(method=replace(USUAL, bits=bits))]


def _sparse(sparsity: float, bits: int) -> Steps:
    pruned = Compress(method=KfacPrune(sparsity=sparsity), allocate="global")
    return lambda whole: [pruned, Compress(method=replace(USUAL, bits=bits))]


def _low_rank(budget: float, bits: int) -> Steps:
    """Low rank with factors of this many bits, in the bytes of `budget` bits for each weight."""
    return lambda whole: [
        Compress(method=KfacSvd(), keep=min(_with_grids(budget) / _with_grids(bits), 1.0), allocate="spectrum"),
        Compress(method=replace(USUAL, bits=bits)),
    ]


def _plus(bits: int, budget: float) -> Steps:
    return lambda whole: [Compress(method=Plus(base=replace(USUAL, bits=bits)), keep=_with_grids(budget) / whole)]


COMBINATIONS: dict[str, Steps] = {
    "2 bits": _bits(2),
    "mixed, 2.5 bits": mixed(2.5),
    "2 bits + low rank": _plus(2, 2.5),
    "low rank, 6 bits": _low_rank(3, 6),
    "half sparse, 4 bits": _sparse(0.5, 4),
    "3 bits": _bits(3),
    "mixed, 3 bits": mixed(3),
    "3 bits + low rank": _plus(3, 3.5),
    "mixed, 3.5 bits": mixed(3.5),
    "low rank, 8 bits": _low_rank(4, 8),
    "4 bits": _bits(4),
    "mixed, 4 bits": mixed(4),
}
"""The combinations in order of their bytes; half sparse with 4 bits takes 3 bits for each weight, with its mask."""


CELLS = Cells("quantize_quality", ("model", "seed", "way"))


@dataclass(frozen=True)
class Setup:
    """A dense model, test rows, its predictions on them, and calibration data."""

    lm: LanguageModel
    rows: list[Batch]
    dense: Predictions
    calibration: Calibration


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(TEST_SETS), nargs="+", help="some of the models")
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
    for model in options.only or TEST_SETS:
        for seed in options.seeds:
            measure(model, seed, wanted)
    print(f"{CELLS}; `python -m benchmarks quantize_tables` makes the tables")


def measure(model: str, seed: int, wanted: dict[str, Steps]) -> None:
    """Measure every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing((model, seed, variant) for variant in wanted)
    if not missing:
        return
    setup = load_setup(model, seed)
    steps = {variant: wanted[variant](8 * setup.lm.dtype.itemsize) for *_, variant in missing}
    needs = frozenset().union(*(first.needs for first, *_ in steps.values()))
    stats = collect_stats(setup.lm, setup.calibration, needs, setup.lm.sites())
    for key in track(missing, f"{model}, seed {seed}"):
        *_, variant = key
        CELLS.add(key, copy_other_seed(model, variant, steps[variant]) or measure_cell(setup, stats, steps[variant]))


def load_setup(model: str, seed: int) -> Setup:
    """Load a model with its calibration data and test rows."""
    test_set, lm = TEST_SETS[model], load_model(model)
    corpus = read(test_set.source, "train")
    rows = development(lm, test_set.source, test_set.rows)
    if test_set.halves:
        held_out = replace(corpus, examples=corpus.examples[-(test_set.rows or 0) :])
        rows = batches(lm, held_out, batch_size=16, max_length=128)
        corpus = replace(corpus, examples=corpus.examples[: len(corpus.examples) // 2])
    drawn = batches(lm, sample(corpus, CALIBRATION_ROWS, seed), batch_size=16, max_length=128)
    return Setup(lm, rows, predictions(lm, rows), Calibration(drawn, seed=seed))


def measure_cell(setup: Setup, stats: dict[str, LayerStats], steps: Sequence[Compress]) -> dict:
    """Measure one cell."""
    small = clone(setup.lm)
    start = time.perf_counter()
    outcome = steps[0].apply_with(small, stats, setup.calibration)
    dense = outcome.dense_nbytes
    for step in steps[1:]:
        outcome = step.apply(small, setup.calibration)
    seconds = time.perf_counter() - start
    sizes = {"bytes": outcome.nbytes, "dense_bytes": dense, "file_bytes": saved_bytes(small), "seconds": seconds}
    # The dense copy computes the same, without decoding matrices at every batch.
    now = predictions(replace(small, model=materialize(small.model)), setup.rows)
    return {**sizes, "kl": kl(setup.dense, now), "metric": quality(now), "dense_metric": quality(setup.dense)}


def quality(predicted: Predictions) -> float:
    """Accuracy, correlation, or perplexity of the predictions."""
    if predicted.distribution is CATEGORICAL and predicted.values.shape[-1] > 2:
        assert predicted.labels is not None
        return math.exp(cross_entropy(predicted.values.float(), predicted.labels).item())
    return metric(predicted)


def copy_other_seed(model: str, variant: str, steps: Sequence[Compress]) -> dict | None:
    """The cell of another seed, if the variant uses no data and all seeds give the same result."""
    if any(step.needs_data for step in steps):
        return None
    return next(iter(CELLS.where(model=model, way=variant)), None)
