"""The README's table: four low-rank methods on two fine-tuned encoders, over five sizes and three calibration seeds.

Calibration: 128 training rows. Judged on the whole development set: KL divergence from the dense model (nats), the
task's metric, and the bytes of the targeted matrices. Each finished cell is one line of
benchmarks/results/lowrank_quality.jsonl, so a run that was stopped goes on where it was.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from rich.progress import track
from scipy.stats import pearsonr

from benchmarks.common import RESULTS, calibration, clone, development, kl, models_folder, predictions
from laconic.calibrate import survey
from laconic.compress import Compress
from laconic.methods import Drone, Fwsvd, KfacSvd, Method, Svd
from laconic.model import Batch, LanguageModel, Predictions, load

MODELS = {"minilm-sst2": "glue/sst2", "minilm-stsb": "glue/stsb"}
SEEDS = (0, 1, 2)
KEEPS = (0.8, 0.65, 0.5, 0.35, 0.25)
COLUMNS: tuple[tuple[Method, str], ...] = (
    (Svd(), "uniform"),
    (Fwsvd(), "uniform"),
    (Drone(), "uniform"),
    (KfacSvd(), "uniform"),
    (Drone(), "spectrum"),
    (KfacSvd(), "spectrum"),
)
PATH = RESULTS / "lowrank_quality.jsonl"


@dataclass(frozen=True)
class Judge:
    """A dense model, its development set, and what it says about it."""

    lm: LanguageModel
    data: list[Batch]
    dense: Predictions


def main(argv: Sequence[str]) -> None:
    """Measure what is missing, then print one Markdown table a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=128, help="calibration rows")
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    options = parser.parse_args(argv)
    RESULTS.mkdir(exist_ok=True)
    names = [options.only] if options.only else list(MODELS)
    for name in names:
        for seed in SEEDS:
            measure(name, seed, options.rows)
    for name in names:
        print(markdown(name, options.rows))


def measure(name: str, seed: int, rows: int) -> None:
    """Every cell of one model and one calibration seed that has no line yet."""
    done = {key(cell) for cell in cells()}
    steps = [
        Compress(method=method, keep=keep, allocate=allocate)  # type: ignore[arg-type]
        for keep in KEEPS
        for method, allocate in COLUMNS
        if (name, rows, seed, method.name, allocate, keep) not in done
    ]
    if not steps:
        return
    lm = load(str(models_folder() / name))
    needs = frozenset().union(*(step.needs for step in steps))
    known = survey(lm, calibration(lm, MODELS[name], rows, seed), needs, lm.sites())
    data = development(lm, MODELS[name])
    judge = Judge(lm, data, predictions(lm, data))
    for step in track(steps, f"{name}, seed {seed}"):
        small = clone(lm)
        outcome = step.solve(small, known)
        cell = {
            "model": name,
            "rows": rows,
            "seed": seed,
            "method": step.method.name,
            "allocate": step.allocate,
            "keep": step.keep,
            "bytes": outcome.nbytes,
            "dense_bytes": outcome.dense_nbytes,
            "predicted": outcome.predicted_loss,
            **judged(judge, small),
        }
        with PATH.open("a") as file:
            file.write(json.dumps(cell) + "\n")


def judged(judge: Judge, small: LanguageModel) -> dict[str, float]:
    """KL and metric of `small`, and the metric of the dense model."""
    now = predictions(small, judge.data)
    return {"kl": kl(judge.dense, now), "metric": metric(now), "dense_metric": metric(judge.dense)}


def metric(predicted: Predictions) -> float:
    """Accuracy of a classifier, Pearson's correlation of a regression."""
    assert predicted.labels is not None
    if predicted.categorical:
        return (predicted.values.argmax(-1) == predicted.labels).float().mean().item()
    return float(pearsonr(predicted.values.squeeze(-1), predicted.labels).statistic)


def cells() -> Iterator[dict]:
    """Every finished cell."""
    if PATH.exists():
        for line in PATH.read_text().splitlines():
            yield json.loads(line)


def key(cell: dict) -> tuple:
    """What makes a cell the same cell."""
    return tuple(cell[name] for name in ("model", "rows", "seed", "method", "allocate", "keep"))


def markdown(name: str, rows: int) -> str:
    """One table: a row per keep, a column per method; mean KL / metric over the seeds."""
    mine = [cell for cell in cells() if cell["model"] == name and cell["rows"] == rows]
    heads = [method.name + (" + spectrum" if allocate == "spectrum" else "") for method, allocate in COLUMNS]
    lines = [
        f"{name}: KL in nats / {'accuracy' if 'sst2' in name else 'Pearson'}, dense {mine[0]['dense_metric']:.3f}, "
        f"mean of {len({cell['seed'] for cell in mine})} calibration seeds (standard deviation of the KL)",
        "",
        "| keep | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
    ]
    for keep in KEEPS:
        columns = []
        for method, allocate in COLUMNS:
            here = [c for c in mine if (c["keep"], c["method"], c["allocate"]) == (keep, method.name, allocate)]
            columns.append(_entry(here))
        lines.append(f"| {keep} | " + " | ".join(columns) + " |")
    return "\n".join([*lines, ""])


def _entry(here: list[dict]) -> str:
    if not here:
        return "–"
    divergences = [cell["kl"] for cell in here]
    spread = f" (±{stdev(divergences):.2g})" if len(here) > 1 else ""
    return f"{mean(divergences):.4f}{spread} / {mean(cell['metric'] for cell in here):.3f}"


def results_path() -> Path:
    """Where the cells are kept."""
    return PATH
