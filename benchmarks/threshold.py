"""DRONE's search by an error of the whole model, compared with the other allocators at equal bytes.

minilm-sst2, method drone, calibrated on 128 training rows. The search has a limit for the KL divergence on these rows;
the result is the KL on the development set.
"""

import argparse
import time
from collections.abc import Sequence

from rich.progress import track

from benchmarks.common import (
    calibration,
    clone,
    kl,
    load_model,
    predictions,
    write_json,
)
from benchmarks.lowrank import Reference, evaluate
from laconic.calibrate import collect_stats
from laconic.compress import Allocation, Compress
from laconic.methods import Drone

MODEL, SOURCE = "minilm-sst2", "glue/sst2"
ERRORS = (0.01, 0.03)
OTHERS: tuple[Allocation, ...] = ("uniform", "spectrum")


def main(argv: Sequence[str]) -> None:
    """Print a table; write benchmarks/results/threshold.json."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    lm = load_model(MODEL)
    calibrated_on = calibration(lm, SOURCE, 128, seed=0)
    stats = collect_stats(lm, calibrated_on, Compress(method=Drone(), keep=0.5, allocate="spectrum").needs, lm.sites())
    reference = Reference.of(lm, SOURCE)
    here = predictions(lm, calibrated_on.batches)
    rows = []
    for error in track(ERRORS, MODEL):
        small, start = clone(lm), time.perf_counter()
        found = Compress(method=Drone(), allocate="threshold", error=error).apply_with(small, stats, calibrated_on)
        row = {"error": error, "seconds": time.perf_counter() - start, "bytes": found.nbytes / found.dense_nbytes}
        row |= {"kl_on_calibration": kl(here, predictions(small, calibrated_on.batches)), **evaluate(reference, small)}
        for allocate in OTHERS:
            other = clone(lm)
            step = Compress(method=Drone(), keep=row["bytes"], allocate=allocate)
            row[f"bytes_{allocate}"] = step.apply_with(other, stats).nbytes / found.dense_nbytes
            row[f"kl_{allocate}"] = evaluate(reference, other)["kl"]
        rows.append(row)
    for row in rows:
        print(
            f"allowed {row['error']:.3f}  on calibration {row['kl_on_calibration']:.5f}  held out {row['kl']:.5f}"
            f"  metric {row['metric']:.3f}  bytes {row['bytes']:.3f}  {row['seconds']:.0f} s  at these bytes: uniform"
            f" {row['kl_uniform']:.5f} ({row['bytes_uniform']:.3f}), spectrum {row['kl_spectrum']:.5f}"
            f" ({row['bytes_spectrum']:.3f})"
        )
    print(f"written to {write_json('threshold', {'model': MODEL, 'rows': rows})}")
