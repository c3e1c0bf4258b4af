"""Compare measured latencies with their budgets: minilm-sst2 at 0.8, 0.65 and 0.5 of its time for 8 × 128 tokens.

float32, eager, CPU. All models run in turn, and each is compared with the dense one of the same round, so that a drift
of the machine's speed affects both. A result is the median of the ratios of 40 rounds after 5 warm-up rounds. The table
of times is measured for this run, unless LACONIC_CACHE names a folder that has one.
"""

import argparse
import os
import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory

import torch
from rich.progress import track

from benchmarks.common import (
    calibration,
    clone,
    development,
    kl,
    load_model,
    predictions,
    write_json,
)
from laconic.calibrate import collect_stats
from laconic.calibrate.passes import describe_machine, forward, random_batch, time_call
from laconic.compress import Compress
from laconic.methods import KfacSvd
from laconic.model import LanguageModel

MODEL, SOURCE = "minilm-sst2", "glue/sst2"
KEEPS = (0.8, 0.65, 0.5)
BATCH, LENGTH, WARM_UP, ROUNDS = 8, 128, 5, 40


def main(argv: Sequence[str]) -> None:
    """Print a table; write benchmarks/results/latency_budget.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        os.environ.setdefault("LACONIC_CACHE", folder)
        rows = measure()
    for row in rows:
        print(
            f"keep {row['keep']:.2f}  shared inputs {row['share_inputs']!s:5}  measured {row['measured']:.3f}"
            f" [{row['quartiles'][0]:.3f}, {row['quartiles'][1]:.3f}]  off by {row['measured'] / row['keep'] - 1:+.1%}"
            f"  bytes {row['bytes'] / row['dense_bytes']:.3f}  KL {row['kl']:.5f}"
        )
    machinery = describe_machine(torch.device("cpu"))
    print(f"written to {write_json('latency_budget', {'batch': BATCH, 'length': LENGTH, **machinery, 'rows': rows})}")


def measure() -> list[dict]:
    """One row for each size, with shared inputs and without."""
    lm = load_model(MODEL)
    asked = [(keep, share) for share in (False, True) for keep in KEEPS]
    stats = collect_stats(lm, calibration(lm, SOURCE, 128, seed=0), step_of(0.5, False).needs, lm.sites())
    data = development(lm, SOURCE)
    dense = predictions(lm, data)
    models, rows = [lm], []
    for keep, share in track(asked, "Compressing"):
        small, start = clone(lm), time.perf_counter()
        outcome = step_of(keep, share).apply_with(small, stats)
        models.append(small)
        rows.append(
            {
                "keep": keep,
                "share_inputs": share,
                "seconds": time.perf_counter() - start,
                "bytes": outcome.nbytes,
                "dense_bytes": outcome.dense_nbytes,
                "kl": kl(dense, predictions(small, data)),
            }
        )
    for row, (lower, middle, upper) in zip(rows, ratios(models), strict=True):
        row |= {"measured": middle, "quartiles": [lower, upper]}
    return rows


def step_of(keep: float, share: bool) -> Compress:
    """The step that keeps this much of the latency."""
    return Compress(method=KfacSvd(), keep=keep, allocate="spectrum", currency="latency", share_inputs=share)


@torch.inference_mode()
def ratios(models: Sequence[LanguageModel]) -> list[list[float]]:
    """Quartiles of the time of each model relative to the first."""
    inputs = random_batch(models[0], BATCH, LENGTH)
    rounds = []
    for number in track(range(WARM_UP + ROUNDS), "Timing"):
        times = [time_call(lambda lm=lm: forward(lm, inputs), lm.device) for lm in models]
        if number >= WARM_UP:
            rounds.append([taken / times[0] for taken in times[1:]])
    return torch.tensor(rounds).quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0).T.tolist()
