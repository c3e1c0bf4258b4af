"""Milliseconds of a forward pass at batch 8 × 128 tokens: dense against low rank, on the CPU, in turn.

Dense and compressed run alternately, so that a drift of the machine's speed hits both; the median of 30 of each.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from rich.progress import track

from benchmarks.common import calibration, clone, models_folder, write_json
from laconic.calibrate import Gram, OutputGram, survey
from laconic.compress import Compress
from laconic.methods import KfacSvd
from laconic.model import LanguageModel, load

BATCH, LENGTH, WARM_UP, RUNS = 8, 128, 5, 30


def main(argv: Sequence[str]) -> None:
    """Print a table; write benchmarks/results/latency.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    lm = load(str(models_folder() / "minilm-sst2"))
    known = survey(lm, calibration(lm, "glue/sst2", 128, seed=0), {Gram, OutputGram}, lm.sites())
    rows = []
    for allocate in ("uniform", "spectrum"):
        for keep in (0.8, 0.65, 0.5, 0.35, 0.25):
            small = clone(lm)
            Compress(method=KfacSvd(), keep=keep, allocate=allocate).solve(small, known)
            dense_ms, small_ms = alternate(lm, small, f"{allocate} {keep}")
            rows.append({"allocate": allocate, "keep": keep, "dense_ms": dense_ms, "ms": small_ms})
    result = {
        "batch": BATCH,
        "length": LENGTH,
        "threads": options.threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "rows": rows,
    }
    print(
        f"kfac-svd, batch {BATCH} × {LENGTH}, {options.threads} threads, {result['cpu']}; median of {RUNS} [quartiles]"
    )
    for row in rows:
        dense, small = row["dense_ms"], row["ms"]
        print(
            f"  {row['allocate']:8} keep {row['keep']:.2f}  dense {dense[1]:6.1f} ms [{dense[0]:.1f}, {dense[2]:.1f}]"
            f"  compressed {small[1]:6.1f} ms [{small[0]:.1f}, {small[2]:.1f}]  {dense[1] / small[1]:.2f}×"
        )
    print(f"written to {write_json('latency', result)}")


@torch.inference_mode()
def alternate(first: LanguageModel, second: LanguageModel, what: str) -> tuple[list[float], list[float]]:
    """Quartiles in milliseconds of both models, run in turn on the same tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 20_000, (BATCH, LENGTH), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    times: tuple[list[float], list[float]] = ([], [])
    for run in track(range(WARM_UP + RUNS), what):
        for model, measured in zip((first.model, second.model), times, strict=True):
            started = time.perf_counter()
            model(**inputs)
            if run >= WARM_UP:
                measured.append((time.perf_counter() - started) * 1000)
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    first_ms, second_ms = (torch.tensor(measured).quantile(quartiles).tolist() for measured in times)
    return first_ms, second_ms
