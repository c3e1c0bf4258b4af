"""Quality of ten variants of low rank on two fine-tuned encoders, over six sizes and three calibration seeds.

Calibration: 128 training rows. Evaluated on the whole development set: KL divergence from the dense model (nats), the
task's metric, and the bytes of the targeted matrices. Each finished cell is one line of
benchmarks/results/lowrank_quality.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.progress import track
from scipy.stats import pearsonr

from benchmarks.common import Cells, calibration, clone, development, kl, load_model, predictions
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.compress import Compress
from laconic.methods import Asvd, Drone, Fwsvd, KfacSvd, Svd, Wlra
from laconic.model import Batch, LanguageModel, Predictions
from laconic.numerics.distributions import CATEGORICAL

MODELS = {"minilm-sst2": "glue/sst2", "minilm-stsb": "glue/stsb"}
"""Folder of each model, and the task that it was fine-tuned on."""

METRICS = {"minilm-sst2": "accuracy", "minilm-stsb": "Pearson"}
SEEDS = (0, 1, 2)
KEEPS = (0.8, 0.65, 0.5, 0.35, 0.25, 0.1)
CALIBRATION_ROWS = 128

VARIANTS: dict[str, Compress] = {
    "svd": Compress(method=Svd(), keep=1),
    "fwsvd": Compress(method=Fwsvd(), keep=1),
    "asvd": Compress(method=Asvd(), keep=1),
    "wlra": Compress(method=Wlra(), keep=1),
    "drone": Compress(method=Drone(), keep=1),
    "kfac-svd": Compress(method=KfacSvd(), keep=1),
    "drone + spectrum": Compress(method=Drone(), keep=1, allocate="spectrum"),
    "kfac-svd + spectrum": Compress(method=KfacSvd(), keep=1, allocate="spectrum"),
    "… + shared": Compress(method=KfacSvd(), keep=1, allocate="spectrum", share_inputs=True),
    "… + anchored": Compress(method=KfacSvd(), keep=1, allocate="spectrum", share_inputs=True, anchored=True),
}
"""The steps on attention and feed-forward matrices, without their size; … stands for the line before."""


TIMED = ("kfac-svd", "kfac-svd + spectrum")
"""One variant with uniform ranks, and one with the ranks of the anchored variant."""


def step_of(variant: str, keep: float) -> Compress:
    """The step of `variant` at one size."""
    return replace(VARIANTS[variant], keep=keep)


def all_needs(variants: Iterable[str] = tuple(VARIANTS)) -> frozenset:
    """The statistics that any of `variants` needs, so that they are collected once."""
    return frozenset().union(*(step_of(variant, 0.5).needs for variant in variants))


CELLS = Cells("lowrank_quality", ("model", "rows", "seed", "way", "keep"))


@dataclass(frozen=True)
class Reference:
    """A dense model, its development set, and its predictions on it."""

    lm: LanguageModel
    data: list[Batch]
    dense: Predictions

    @classmethod
    def of(cls, lm: LanguageModel, source: str) -> "Reference":
        """With the development rows of `source`."""
        data = development(lm, source)
        return cls(lm, data, predictions(lm, data))


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=CALIBRATION_ROWS, help="calibration rows")
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--keeps", nargs="+", type=float, choices=KEEPS, default=list(KEEPS), help="some of the sizes")
    parser.add_argument("--ways", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="some of the ways")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else MODELS:
        for seed in options.seeds:
            measure(name, seed, options.rows, [(variant, keep) for keep in options.keeps for variant in options.ways])
    print(f"{CELLS}; `python -m benchmarks tables` makes the tables")


def measure(name: str, seed: int, rows: int, wanted: Sequence[tuple[str, float]]) -> None:
    """Measure every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing((name, rows, seed, variant, keep) for variant, keep in wanted)
    if not missing:
        return
    lm = load_model(name)
    calibrating = calibration(lm, MODELS[name], rows, seed)
    stats = collect_stats(lm, calibrating, all_needs({variant for *_, variant, _ in missing}), lm.sites())
    reference = Reference.of(lm, MODELS[name])
    for key in track(missing, f"{name}, seed {seed}"):
        *_, variant, keep = key
        CELLS.add(
            key, copy_other_seed(name, variant, keep) or measure_cell(reference, stats, calibrating, variant, keep)
        )


def measure_cell(
    reference: Reference, stats: dict[str, LayerStats], data: Calibration, variant: str, keep: float
) -> dict:
    """Measure one cell."""
    small = clone(reference.lm)
    outcome = step_of(variant, keep).apply_with(small, stats, data)
    sizes = {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes, "predicted": outcome.predicted_loss}
    return {**sizes, **evaluate(reference, small)}


def copy_other_seed(name: str, variant: str, keep: float) -> dict | None:
    """The cell of another seed, if the variant uses no data and all seeds give the same result."""
    if step_of(variant, keep).needs_data:
        return None
    return next(iter(CELLS.where(model=name, way=variant, keep=keep)), None)


def evaluate(reference: Reference, small: LanguageModel) -> dict[str, float]:
    """KL and metric of `small`, and the metric of the dense model."""
    now = predictions(small, reference.data)
    return {"kl": kl(reference.dense, now), "metric": metric(now), "dense_metric": metric(reference.dense)}


def metric(predicted: Predictions) -> float:
    """Accuracy of a classifier, Pearson's correlation of a regression."""
    assert predicted.labels is not None
    if predicted.distribution is CATEGORICAL:
        return (predicted.values.argmax(-1) == predicted.labels).float().mean().item()
    correlation: Any = pearsonr(predicted.values.squeeze(-1), predicted.labels)
    return float(correlation.statistic)
