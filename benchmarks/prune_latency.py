"""Milliseconds and bytes on disk of minilm-sst2 with zeros, with fewer heads and channels, and with fewer blocks.

Batch 8 × 128 tokens, float32, CPU. Zeros are multiplied like any other number, so they save bytes and no time. Smaller
shapes save both. Dense and pruned models run alternately, as in `latency`.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.progress import track

from benchmarks.common import calibration, clone, load_model, write_json
from benchmarks.latency import BATCH, LENGTH, alternate, saved_bytes
from benchmarks.lowrank import MODELS
from laconic.compress import Compress, Narrow, Shorten, Step
from laconic.methods import Magnitude

MODEL = "minilm-sst2"
ROWS = 32

# Time depends on the shapes alone, so each shape is made by its cheapest method.
STEPS: dict[str, Step] = {
    "50 % zeros": Compress(method=Magnitude(sparsity=0.5)),
    "90 % zeros": Compress(method=Magnitude(sparsity=0.9)),
    "2:4": Compress(method=Magnitude(pattern="2:4")),
    "half of the heads": Narrow(heads=0.5, importance="magnitude", refit=False),
    "half of the channels": Narrow(channels=0.5, importance="magnitude", refit=False),
    "half of both": Narrow(heads=0.5, channels=0.5, importance="magnitude", refit=False),
    "a quarter of both": Narrow(heads=0.25, channels=0.25, importance="magnitude", refit=False),
    "2 of 6 blocks dropped": Shorten(drop=2, select="last"),
    "3 of 6 blocks dropped": Shorten(drop=3, select="last"),
}


def main(argv: Sequence[str]) -> None:
    """Print a table; write benchmarks/results/prune_latency.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = measure()
    for row in rows:
        dense, small = row["dense_ms"], row["ms"]
        print(
            f"{row['way']:24} dense {dense[1]:6.1f} ms  pruned {small[1]:6.1f} ms [{small[0]:.1f}, {small[2]:.1f}]"
            f"  {dense[1] / small[1]:.2f}×  file {row['file_bytes']:,} of {row['dense_file_bytes']:,} bytes"
        )
    machine = {"threads": options.threads, "instructions": torch.backends.cpu.get_cpu_capability()}
    about = {"model": MODEL, "batch": BATCH, "length": LENGTH, **machine, "torch": torch.__version__}
    print(f"written to {write_json('prune_latency', {**about, 'rows': rows})}")


def measure() -> list[dict]:
    """One row for each step."""
    lm = load_model(MODEL)
    data = calibration(lm, MODELS[MODEL], ROWS, seed=0)
    dense_file = saved_bytes(lm)
    rows = []
    for variant, step in track(list(STEPS.items()), MODEL):
        small = clone(lm)
        outcome = step.apply(small, data)
        dense_ms, small_ms = alternate(lm, small)
        file = saved_bytes(small)
        sizes = {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes}
        # Bytes of the targeted matrices on disk, and of the biases and norms of dropped parts.
        on_disk = {"file_bytes": file, "dense_file_bytes": dense_file}
        rows.append({"way": variant, "dense_ms": dense_ms, "ms": small_ms, **sizes, **on_disk})
    return rows
