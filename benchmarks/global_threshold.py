"""Memory and time of one magnitude threshold over a billion weights: laconic beside torch.nn.utils.prune.

The weights are random, in float32, in the shapes of the blocks of a Llama 3.2 of a billion parameters. Each variant
prunes half of them in its own process. laconic finds how many weights each matrix loses (`laconic.numerics.masks`) and
sets them to zero matrix by matrix. torch runs `prune.global_unstructured` and `prune.remove` as in its tutorial. The
result is the largest resident memory of the process, minus what it had before the weights were made, in units of the
weights. A process may take as much memory as the machine has; if it asks for more, torch's error is the result.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from benchmarks.common import write_json
from laconic.numerics.masks import CHUNK, ScoredMatrix, count_pruned, keep_in_matrix

SHAPES = ((2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192))
"""Query, key, value, output, gate, up and down of one block."""
BLOCKS = (2, 17)
"""Numbers of blocks: few enough that both variants finish, and a billion weights."""
SPARSITY = 0.5
LEFT_TO_THE_MACHINE = 4 * 2**30
"""Bytes of free memory that the processes leave to the machine."""


def main(argv: Sequence[str]) -> None:
    """Print a table; write benchmarks/results/global_threshold.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", nargs=2, metavar=("WAY", "BLOCKS"), help="measure in this process, print JSON")
    options = parser.parse_args(argv)
    if options.here:
        variant, blocks = options.here
        print(json.dumps(measured(VARIANTS[variant], int(blocks))))
        return
    rows = [{"way": variant, "blocks": blocks, **apart(variant, blocks)} for blocks in BLOCKS for variant in VARIANTS]
    for row in rows:
        said = row.get("failed") or (
            f"peak {row['peak_bytes'] / 2**30:.2f} GiB, {row['ratio']:.2f} × the weights, {row['seconds']:.0f} s"
        )
        print(f"{row['way']:8} {row['weights']:>13,} weights, {row['weight_bytes'] / 2**30:.2f} GiB: {said}")
    print(
        f"written to {write_json('global_threshold', {'sparsity': SPARSITY, 'torch': torch.__version__, 'rows': rows})}"
    )


def apart(variant: str, blocks: int) -> dict:
    """Run one variant in its own process."""
    limit = available() - LEFT_TO_THE_MACHINE
    weights = blocks * sum(rows * columns for rows, columns in SHAPES)
    size = {"weights": weights, "weight_bytes": 4 * weights, "limit_bytes": limit}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "global_threshold", "--here", variant, str(blocks)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    if done.returncode:
        return {**size, "failed": done.stderr.strip().splitlines()[-1]}
    return {**size, **json.loads(done.stdout)}


def measured(prunes: Callable[[nn.ModuleList, int], None], blocks: int) -> dict:
    """Make the weights, prune them, and return memory and time."""
    before = resident_memory()
    generator = torch.Generator().manual_seed(0)
    layers = nn.ModuleList(_layer(shape, generator) for _ in range(blocks) for shape in SHAPES)
    weights = sum(layer.get_parameter("weight").numel() for layer in layers)
    start = time.perf_counter()
    prunes(layers, round(SPARSITY * weights))
    seconds = time.perf_counter() - start
    zeros = sum(weights_of(layer).numel() - int(weights_of(layer).count_nonzero()) for layer in layers)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"zeros": zeros, "peak_bytes": peak, "ratio": peak / (4 * weights), "seconds": seconds}


@torch.no_grad()
def by_laconic(layers: nn.ModuleList, k: int) -> None:
    """Two passes of histograms, then the mask of one matrix after another."""
    weights = [weights_of(layer) for layer in layers]
    fields = [ScoredMatrix(lambda W=W: (part.abs() for part in W.flatten().split(CHUNK)), W.numel()) for W in weights]
    for W, lost in zip(weights, count_pruned(fields, k), strict=True):
        W.mul_(keep_in_matrix(W.abs(), lost / W.numel()))


def by_torch(layers: nn.ModuleList, k: int) -> None:
    """Prune as torch's tutorial does."""
    parameters = [(layer, "weight") for layer in layers]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=k)
    for layer, name in parameters:
        prune.remove(layer, name)


VARIANTS: dict[str, Callable[[nn.ModuleList, int], None]] = {"laconic": by_laconic, "torch": by_torch}


def weights_of(layer: nn.Module) -> torch.Tensor:
    """The (out, in) matrix of a plain linear."""
    return layer.get_parameter("weight").detach()


def available() -> int:
    """Bytes that the machine can give now."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def resident_memory() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _layer(shape: tuple[int, int], generator: torch.Generator) -> nn.Linear:
    rows, columns = shape
    layer = nn.Linear(columns, rows, bias=False, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.normal_(std=columns**-0.5, generator=generator)
    return layer
