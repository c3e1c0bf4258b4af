"""Milliseconds of a forward pass (batch 8 × 128 tokens, float32, CPU) and bytes on disk: dense and low rank.

Dense and compressed models run alternately, so that a drift of the machine's speed affects both. A time is the median
of 30 runs after 5 warm-up runs. Bytes are those of the safetensors files. Time depends on the ranks alone, so one
variant stands for all with the same allocator.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.progress import track

from benchmarks.common import calibration, clone, load_model, write_json
from benchmarks.lowrank import CALIBRATION_ROWS, KEEPS, MODELS, TIMED, all_needs, step_of
from laconic.calibrate import collect_stats
from laconic.model import LanguageModel
from laconic.store import file_bytes, save

BATCH, LENGTH, WARM_UP, RUNS = 8, 128, 5, 30


def main(argv: Sequence[str]) -> None:
    """Print a table; write benchmarks/results/latency.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = [row for name in MODELS for row in measure(name)]
    result = {
        "batch": BATCH,
        "length": LENGTH,
        "threads": options.threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "rows": rows,
    }
    for row in rows:
        dense, small = row["dense_ms"], row["ms"]
        print(
            f"{row['model']:12} {row['way']:20} keep {row['keep']:.2f}  dense {dense[1]:6.1f} ms"
            f"  compressed {small[1]:6.1f} ms [{small[0]:.1f}, {small[2]:.1f}]  {dense[1] / small[1]:.2f}×"
            f"  claimed {row['bytes']:,}  on disk {row['disk_bytes']:,}"
        )
    print(f"written to {write_json('latency', result)}")


def measure(name: str) -> list[dict]:
    """One row for each variant and size."""
    lm = load_model(name)
    stats = collect_stats(lm, calibration(lm, MODELS[name], CALIBRATION_ROWS, seed=0), all_needs(TIMED), lm.sites())
    dense_file = saved_bytes(lm)
    rows = []
    for keep in track(KEEPS, name):
        for variant in TIMED:
            small = clone(lm)
            outcome = step_of(variant, keep).apply_with(small, stats)
            dense_ms, small_ms = alternate(lm, small)
            file = saved_bytes(small)
            rows.append(
                {
                    "model": name,
                    "way": variant,
                    "keep": keep,
                    "dense_ms": dense_ms,
                    "ms": small_ms,
                    "bytes": outcome.nbytes,
                    # Bytes of the targeted matrices on disk: everything else is the same in both files.
                    "disk_bytes": file - (dense_file - outcome.dense_nbytes),
                    "file_bytes": file,
                    "dense_file_bytes": dense_file,
                }
            )
    return rows


def saved_bytes(lm: LanguageModel) -> int:
    """Bytes of the weights that saving `lm` writes."""
    with TemporaryDirectory() as folder:
        save(lm, Path(folder) / "model")
        return file_bytes(Path(folder) / "model")


@torch.inference_mode()
def alternate(
    first: LanguageModel, second: LanguageModel, batch: int = BATCH, length: int = LENGTH
) -> tuple[list[float], list[float]]:
    """Quartiles in milliseconds of both models, run in turn on the same tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 20_000, (batch, length), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(WARM_UP + RUNS):
        for model, measured in zip((first.model, second.model), times, strict=True):
            started = time.perf_counter()
            model(**inputs)
            if run >= WARM_UP:
                measured.append((time.perf_counter() - started) * 1000)
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    first_ms, second_ms = (torch.tensor(measured).quantile(quartiles).tolist() for measured in times)
    return first_ms, second_ms
