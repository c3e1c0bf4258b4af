"""Quality of ten ways of low rank on two fine-tuned encoders, over six sizes and three calibration seeds.

Calibration: 128 training rows. Judged on the whole development set: KL divergence from the dense model (nats), the
task's metric, and the bytes of the targeted matrices. Each finished cell is one line of
benchmarks/results/lowrank_quality.jsonl, so a run that was stopped goes on where it was; delete the file to begin anew.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress import track
from scipy.stats import pearsonr

from benchmarks.cells import Cells
from benchmarks.common import calibration, clone, development, kl, models_folder, predictions
from benchmarks.lowrank import CALIBRATION_ROWS, KEEPS, MODELS, SEEDS, WAYS, every_need, step_of
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.model import Batch, LanguageModel, Predictions, load
from laconic.numerics.distributions import CATEGORICAL

CELLS = Cells("lowrank_quality", ("model", "rows", "seed", "way", "keep"))


@dataclass(frozen=True)
class Judge:
    """A dense model, its development set, and what it says about it."""

    lm: LanguageModel
    data: list[Batch]
    dense: Predictions


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=CALIBRATION_ROWS, help="calibration rows")
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--keeps", nargs="+", type=float, choices=KEEPS, default=list(KEEPS), help="some of the sizes")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="some of the ways")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else MODELS:
        for seed in options.seeds:
            measure(name, seed, options.rows, [(way, keep) for keep in options.keeps for way in options.ways])
    print(f"{CELLS}; `python -m benchmarks tables` makes the tables")


def measure(name: str, seed: int, rows: int, wanted: Sequence[tuple[str, float]]) -> None:
    """Every cell of one model and one calibration seed that has no line yet."""
    missing = CELLS.missing((name, rows, seed, way, keep) for way, keep in wanted)
    if not missing:
        return
    lm = load(str(models_folder() / name))
    calibrating = calibration(lm, MODELS[name], rows, seed)
    known = collect_stats(lm, calibrating, every_need({way for *_, way, _ in missing}), lm.sites())
    data = development(lm, MODELS[name])
    judge = Judge(lm, data, predictions(lm, data))
    for key in track(missing, f"{name}, seed {seed}"):
        *_, way, keep = key
        CELLS.add(key, blind(name, way, keep) or solved(judge, known, calibrating, way, keep))


def solved(judge: Judge, known: dict[str, LayerStats], data: Calibration, way: str, keep: float) -> dict:
    """One cell, measured."""
    small = clone(judge.lm)
    outcome = step_of(way, keep).solve(small, known, data)
    sizes = {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes, "predicted": outcome.predicted_loss}
    return {**sizes, **judged(judge, small)}


def blind(name: str, way: str, keep: float) -> dict | None:
    """The same cell of another seed, where the way looks at no data and so knows no seed."""
    if step_of(way, keep).needs_data:
        return None
    return next(iter(CELLS.where(model=name, way=way, keep=keep)), None)


def judged(judge: Judge, small: LanguageModel) -> dict[str, float]:
    """KL and metric of `small`, and the metric of the dense model."""
    now = predictions(small, judge.data)
    return {"kl": kl(judge.dense, now), "metric": metric(now), "dense_metric": metric(judge.dense)}


def metric(predicted: Predictions) -> float:
    """Accuracy of a classifier, Pearson's correlation of a regression."""
    assert predicted.labels is not None
    if predicted.distribution is CATEGORICAL:
        return (predicted.values.argmax(-1) == predicted.labels).float().mean().item()
    return float(pearsonr(predicted.values.squeeze(-1), predicted.labels).statistic)
