"""One pass, sequential and anchored calibration side by side, with llm-compressor's one-shot and sequential pipelines.

Calibration: 128 rows; for models that llm-compressor is measured on, only those of them that fill the length. Evaluated
on held-out rows: KL divergence from the dense model, nats per prediction. Seconds are CPU seconds of one thread, from
batches and a dense model in memory to a compressed one; they compare variants on one machine. Each finished cell is one
line of benchmarks/results/sequential.jsonl. An interrupted run continues; to start again, delete the file. `--peer` is
the Python of an environment that `benchmarks/peers/llm_compressor.sh` made; without it only laconic is measured.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import isnan
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import Cells, clone, kl, mean_of, models_folder, places_of, predictions
from benchmarks.lowrank import SEEDS
from benchmarks.quantizing import TEST_SETS, Setup, load_setup
from benchmarks.tables import ROOT, replace_between
from laconic.compress import Compress
from laconic.methods import Gptq, Method, SparseGpt, Wanda
from laconic.model import Batch, LanguageModel
from laconic.store import materialize

CELLS = Cells("sequential", ("model", "seed", "method", "size", "way"))
BEGIN = "<!-- sequential, made by `python -m benchmarks sequential_tables` -->"
SIZES: dict[str, tuple[float, ...]] = {"sparsegpt": (0.5, 0.6, 0.7), "wanda": (0.5, 0.595, 0.70625), "gptq": (4, 3, 2)}
"""By method. For `wanda`, sizes at which rounding the zeros of a row down, as llm-compressor does, and to the nearest
number, as laconic does, is the same in the rows of every model here."""
OURS = ("one pass", "sequential", "anchored")
PEERS = {"llm-compressor, one-shot": "basic", "llm-compressor, sequential": "sequential"}
"""The variants of llm-compressor, and the names of its pipelines."""
PEER_SCRIPT = Path(__file__).parent / "peers/llm_compressor.py"
PEER_MODELS = ("stories260K", "mico-tinyllama-1m")
"""Causal models, for which the pipelines of llm-compressor are made."""

LEAST_SAID = 5e-4
"""The smallest difference in the fraction of zeros that the tables show."""


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=list(TEST_SETS), nargs="+", default=list(TEST_SETS), help="some of the models"
    )
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--methods", nargs="+", choices=list(SIZES), default=list(SIZES), help="some of the methods")
    parser.add_argument("--ways", nargs="+", choices=list(OURS), default=list(OURS), help="some of laconic's ways")
    parser.add_argument("--peer", help="the Python of llm-compressor's environment")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    # Results of one variant must not be reused by the next.
    os.environ["LACONIC_CACHE_GB"] = "0"
    for model in options.only:
        for seed in options.seeds:
            measure(model, seed, options.methods, options.ways, options.peer)
    print(f"{CELLS}; `python -m benchmarks sequential_tables` makes the tables")


def measure(model: str, seed: int, methods: Sequence[str], variants: Sequence[str], peer: str | None) -> None:
    """Measure every cell of one model and one calibration seed that has no line yet."""
    theirs = list(PEERS) if peer is not None and model in PEER_MODELS else []
    keys = [
        (model, seed, name, size, variant)
        for name in methods
        for size in SIZES[name]
        for variant in (*variants, *theirs)
    ]
    missing = CELLS.missing(keys)
    if not missing:
        return
    setup = load_setup(model, seed)
    if model in PEER_MODELS:
        setup = replace(setup, calibration=replace(setup.calibration, batches=whole_rows(setup.calibration.batches)))
    ours = [key for key in missing if key[-1] in OURS]
    if ours:
        measure_cell(setup, *ours[0][2:])
    for key in track(ours, f"{model}, seed {seed}"):
        CELLS.add(key, measure_cell(setup, *key[2:]))
    theirs = [key for key in missing if key[-1] in PEERS]
    if theirs and peer is not None:
        by_peer(setup, theirs, peer)


def whole_rows(batches: Sequence[Batch]) -> list[Batch]:
    """The rows without padding; llm-compressor's statistics would count padding."""
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    kept = []
    for batch in batches:
        if batch["input_ids"].shape[1] == longest:
            whole = batch["attention_mask"].all(1)
            kept.append({name: tensor[whole] for name, tensor in batch.items()})
    return [batch for batch in kept if len(batch["input_ids"])]


def method_of(name: str, size: float) -> Method:
    """A method with one grid for each row: llm-compressor refuses groups that do not divide the rows of the models."""
    if name == "gptq":
        return Gptq(bits=int(size), group_size="channel")
    return {"sparsegpt": SparseGpt, "wanda": Wanda}[name](sparsity=size)


def measure_cell(setup: Setup, name: str, size: float, variant: str) -> dict:
    """Measure one cell with laconic."""
    small = clone(setup.lm)
    method = method_of(name, size)
    step = Compress(method=method, sequential=variant == "sequential", anchored=variant == "anchored")
    start = time.process_time()
    step.apply(small, setup.calibration)
    seconds = time.process_time() - start
    plain = replace(small, model=materialize(small.model))
    return {**evaluate(setup, plain), "seconds": seconds, "versions": {"torch": version("torch")}}


def by_peer(setup: Setup, keys: Sequence[tuple], python: str) -> None:
    """The cells of llm-compressor, measured in a process of its own."""
    batches = setup.calibration.batches
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            {"method": name, "size": size, "pipeline": PEERS[variant], "output": f"{folder}/{number}.safetensors"}
            for number, (_, _, name, size, variant) in enumerate(keys)
        ]
        rows = [batch["input_ids"].tolist() for batch in batches]
        asked = Path(folder, "jobs.json")
        asked.write_text(json.dumps({"model": str(models_folder() / keys[0][0]), "rows": rows, "jobs": jobs}))
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        said = subprocess.run(
            [python, str(PEER_SCRIPT), str(asked)], env=alone, cwd=folder, check=True, capture_output=True, text=True
        ).stdout
        lines = [json.loads(line.removeprefix("MADE ")) for line in said.splitlines() if line.startswith("MADE ")]
        for key, line in zip(keys, lines, strict=True):
            small = with_weights(setup.lm, load_file(line["output"]))
            cell = {"seconds": line["seconds"], "versions": line["versions"]}
            CELLS.add(key, {**evaluate(setup, small), **cell})


@torch.no_grad()
def with_weights(lm: LanguageModel, weights: Mapping[str, Tensor]) -> LanguageModel:
    """A copy of `lm` with other matrices."""
    small = clone(lm)
    for site in small.sites():
        site.parameter.copy_(weights[site.name])
    return small


def evaluate(setup: Setup, small: LanguageModel) -> dict:
    """KL on the held-out rows, and the fraction of zeros that the method left."""
    sites = [site.weight() for site in small.sites()]
    zeros = sum(int((weight == 0).sum()) for weight in sites) / sum(weight.numel() for weight in sites)
    return {"kl": kl(setup.dense, predictions(small, setup.rows)), "zeros": zeros}


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/pruning.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    replace_between(ROOT / "docs/figures/pruning.md", "\n".join(filter(None, map(table, TEST_SETS))), BEGIN)


def table(model: str) -> str:
    """KL of each variant at each size, means over the seeds, and the seconds as a multiple of one pass."""
    mine = CELLS.where(model=model)
    if not mine:
        return ""
    variants = [variant for variant in (*OURS, *PEERS) if any(cell["way"] == variant for cell in mine)]
    counts = {len({cell["seed"] for cell in CELLS.where(model=model, method=name)}) for name in SIZES} - {0}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    lines = [
        f"**{model}**; calibration seeds: {seeds}",
        "",
        f"| | {' | '.join(variants)} |",
        "|---|" + "---:|" * len(variants),
    ]
    for name, sizes in SIZES.items():
        measured = [size for size in sizes if CELLS.where(model=model, method=name, size=size)]
        for size in measured:
            here = {variant: CELLS.where(model=model, method=name, size=size, way=variant) for variant in variants}
            entries = [entry(here[variant], here) + other_zeros(here[variant], name, size) for variant in variants]
            lines.append(f"| {called(name, size)} | {' | '.join(entries)} |")
        if not measured:
            continue
        slower = [slowdown(model, name, variant, measured) for variant in variants]
        lines.append(f"| *seconds, {name}* | {' | '.join(slower)} |")
    return "\n".join([*lines, ""])


def called(name: str, size: float) -> str:
    """The name of a method with its size."""
    return f"{name}, {size:.0f} bits" if name == "gptq" else f"{name}, {round(100 * size, 1):g}%"


def entry(here: Sequence[dict], beside: Mapping[str, Sequence[dict]]) -> str:
    """The mean KL, in bold if it is the lowest of its line; with the seeds, if other columns have more."""
    if not here:
        return ""
    value = mean_of(here, "kl")
    text = f"{value:.{places_of(value)}f}"
    most = max(map(len, beside.values()))
    if len(here) < most:
        # Fewer seeds than the other columns, so it cannot be compared with them.
        return f"{text} (seed {', '.join(str(cell['seed']) for cell in here)})"
    lowest = min(mean_of(cells, "kl") for cells in beside.values() if len(cells) == most)
    return f"**{text}**" if value == lowest else text


def other_zeros(here: Sequence[dict], name: str, size: float) -> str:
    """The sparsity that was reached, if it differs from the requested one; else an empty text."""
    if not here or name == "gptq" or abs(mean_of(here, "zeros") - size) < LEAST_SAID:
        return ""
    return f" ({100 * mean_of(here, 'zeros'):.1f}% zeros)"


def slowdown(model: str, name: str, variant: str, sizes: Sequence[float]) -> str:
    """The seconds of `variant` relative to one pass of the same tool: the mean over sizes of the fastest seeds."""
    first = next(iter(PEERS)) if variant in PEERS else next(iter(OURS))

    def least(of: str) -> float:
        cells = [CELLS.where(model=model, method=name, size=size, way=of) for size in sizes]
        return sum(min((cell["seconds"] for cell in here), default=float("nan")) for here in cells)

    seconds, beside = least(variant), least(first)
    return "" if isnan(seconds) or isnan(beside) else f"{seconds:.1f} ({seconds / beside:.2f}×)"
