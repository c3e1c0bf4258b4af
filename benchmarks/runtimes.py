"""Milliseconds of minilm-sst2 in eager torch, compiled, in ONNX Runtime and in OpenVINO: dense and compressed.

Each cell takes turns with the dense model in eager torch, on the same tokens and as many threads, so that a drift of
the machine's speed affects both. A turn is several passes after a pause, because threads of one runtime that still wait
for work would slow the other. The dense model's matrix products alone are timed in torch as well: they are a lower
bound for a runtime whose products are not faster. Everything is in float32, except inputs and weights of
`dynamic-int8`. The recipe `sst2-openvino` is compared in accuracy as well, on the whole development split.

Each finished cell is one line of benchmarks/results/runtimes.jsonl. An interrupted run continues; another machine
measures everything again. `--clock cpu` counts the time of the processor, for one thread on a machine with other work.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import quantiles
from time import perf_counter, process_time, sleep
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.common import Cells, calibration, clone, development, kl, load_model, predictions
from benchmarks.tables import ROOT, replace_between
from laconic.builtin_recipes import find_file
from laconic.calibrate.passes import forward, random_batch
from laconic.calibrate.sources import read
from laconic.compress import Compress, Narrow
from laconic.evaluate.metrics import Share
from laconic.evaluate.paired import difference
from laconic.formats.autotune import machine
from laconic.methods import Int8, KfacSvd
from laconic.model import LanguageModel, Predictions, load
from laconic.progress import silent
from laconic.recipe import read_recipe
from laconic.recipe.sampling import Sampling
from laconic.runtime import RUNTIMES, Service, serve

MODEL, DATA, CALIBRATION_ROWS, DEVELOPMENT_ROWS = "minilm-sst2", "glue/sst2", 128, 200
SHAPES = ((8, 64), (1, 16))
THREADS = (1, 2)
TURN, PAUSE = 5, 0.3
"""Timed passes of a turn, after an untimed one, and the seconds of pause before it."""
PRODUCTS = "dense: matrix products alone"
RECIPE = "sst2-openvino"
CLOCKS = {"wall": perf_counter, "cpu": process_time}
CELLS = Cells("runtimes", ("processor", "threads", "way", "runtime"))
PLACE = "<!-- runtimes, made by `python -m benchmarks runtimes_tables` -->"
VARIANTS: dict[str, Callable[[LanguageModel], LanguageModel]] = {
    "dense": lambda lm: lm,
    "low rank, keep 0.35": lambda lm: _compressed(lm, Compress(method=KfacSvd(), keep=0.35)),
    "half the heads and channels": lambda lm: _compressed(lm, Narrow(heads=0.5, channels=0.5)),
    "dynamic-int8": lambda lm: _compressed(lm, Compress(method=Int8())),
    RECIPE: lambda lm: _made_by(lm, RECIPE),
}


class Timing(NamedTuple):
    """The settings of a timing.

    Args:
        runs: the number of timed passes of each model.
        clock: one of `CLOCKS`.
    """

    runs: int
    clock: str


def main(argv: Sequence[str]) -> None:
    """Measure, print and store every cell that was not measured on this machine yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each; at least 2")
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS)
    parser.add_argument("--like", default="", help="only variants with this in their name")
    parser.add_argument("--runtimes", nargs="*", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--made", help=f"the folder that `laconic run {RECIPE}` wrote, so that it does not run again")
    options = parser.parse_args(argv)
    here = f"{machine()['processor']}, {machine()['instructions']}"
    kinds = [(PRODUCTS, "eager"), *((variant, runtime) for variant in VARIANTS for runtime in RUNTIMES)]
    kinds = [(variant, runtime) for variant, runtime in kinds if runtime in options.runtimes]
    wanted = [(here, threads, *kind) for threads in options.threads for kind in kinds]
    missing = [key for key in CELLS.missing(wanted) if options.like in key[2]]
    dense = load_model(MODEL)
    given = {RECIPE: load(options.made)} if options.made else {}
    small = given | {
        variant: VARIANTS[variant](dense)
        for variant in dict.fromkeys(key[2] for key in missing)
        if variant not in (PRODUCTS, *given)
    }
    timing = Timing(options.runs, options.clock)
    for key in missing:
        _, threads, variant, runtime = key
        torch.set_num_threads(threads)
        alone = variant == PRODUCTS
        cell = multiplied(dense, timing) if alone else measure(dense, serve(small[variant], runtime), timing)
        if variant == RECIPE:
            cell["accuracy"] = accuracy(dense, serve(small[variant], runtime).lm)
        CELLS.add(key, {**cell, **timing._asdict(), "machine": machine()})
        print(f"{variant:28} {runtime:9} {threads} threads  {describe(cell)}", flush=True)
    print(CELLS)


def measure(dense: LanguageModel, service: Service, timing: Timing) -> dict:
    """KL to the dense model in torch, and the quartiles of the milliseconds of both for each shape."""
    data = development(dense, DATA, DEVELOPMENT_ROWS)
    cell = {"kl": kl(predictions(dense, data), predictions(service.lm, data)), "about": service.describe()}
    return cell | timed(dense, lambda inputs: _pass(service.lm, inputs), timing)


def accuracy(dense: LanguageModel, small: LanguageModel) -> dict[str, float]:
    """The accuracy on the whole development split, that of the dense model, and the difference with its interval."""
    data = development(dense, DATA)
    theirs, ours = (_right(predictions(lm, data)) for lm in (dense, small))
    share = Share(lambda table: table[:, 0] == 1)
    change = difference(share, ours, theirs)
    return {
        "value": share(ours),
        "dense": share(theirs),
        "change": change.value,
        "low": change.low,
        "high": change.high,
    }


def _right(found: Predictions) -> np.ndarray:
    assert found.labels is not None, "rows of GLUE have labels"
    return (found.values.argmax(-1) == found.labels).double().numpy()[:, None]


def multiplied(dense: LanguageModel, timing: Timing) -> dict:
    """The same for the matrix products of the blocks alone, one after another."""
    weights = [site.weight() for site in dense.sites()]

    def products(inputs: dict[str, Tensor]) -> Callable[[], object]:
        rows = {width: torch.randn(inputs["input_ids"].numel(), width) for width in {w.shape[1] for w in weights}}
        return lambda: [linear(rows[weight.shape[1]], weight) for weight in weights]

    return timed(dense, products, timing)


def timed(dense: LanguageModel, other: Callable[[dict[str, Tensor]], Callable[[], object]], timing: Timing) -> dict:
    """Quartiles of the milliseconds of the dense model and of `other` on the same inputs, for each shape."""
    cell = {}
    for batch, length in SHAPES:
        inputs = random_batch(dense, batch, length)
        cell[f"{batch}x{length}"] = alternating({"dense_ms": _pass(dense, inputs), "ms": other(inputs)}, timing)
    return cell


def _pass(lm: LanguageModel, inputs: dict[str, Tensor]) -> Callable[[], object]:
    lm.model.eval()
    return lambda: forward(lm, inputs)


@torch.inference_mode()
def alternating(passes: dict[str, Callable[[], object]], timing: Timing) -> dict[str, list[float]]:
    """Quartiles of the milliseconds of each model; they take turns, and the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    now = CLOCKS[timing.clock]
    for turn in range(1 + timing.runs // TURN):
        for name, run in passes.items():
            sleep(PAUSE)
            run()
            for _ in range(TURN):
                start = now()
                run()
                if turn:
                    times[name].append(1e3 * (now() - start))
    return {name: quantiles(values, n=4, method="inclusive") for name, values in times.items()}


def describe(cell: dict) -> str:
    """One line of the table; a speed is the ratio of the medians."""
    shapes = (f"{batch}x{length}" for batch, length in SHAPES)
    return "  ".join(f"{shape} {cell[shape]['ms'][1]:6.1f} ms ({speedup(cell[shape]):.2f}×)" for shape in shapes)


def speedup(times: dict) -> float:
    """The speed relative to the dense model in eager torch."""
    return times["dense_ms"][1] / times["ms"][1]


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all machines into docs/runtimes.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    processors = dict.fromkeys(cell["processor"] for cell in CELLS)
    lines = [line for processor in processors for line in table(CELLS.where(processor=processor))]
    if lines:
        replace_between(ROOT / "docs/runtimes.md", "\n".join(lines), PLACE)


def table(cells: list[dict]) -> list[str]:
    """A table for each number of threads: how many times as fast as dense eager torch, and milliseconds."""
    libraries = sorted({cell["about"]["library"] for cell in cells if "about" in cell})
    clock = ", CPU time" if cells[-1].get("clock") == "cpu" else ""
    lines = [f"{cells[-1]['processor']}{clock}; {', '.join(libraries)}.", ""]
    shapes = [f"{batch}x{length}" for batch, length in SHAPES]
    for threads in sorted({cell["threads"] for cell in cells}):
        spoken = "one thread" if threads == 1 else f"{threads} threads"
        titles = " | ".join(shape.replace("x", " × ") for shape in shapes)
        lines += [f"| {spoken} | runtime | {titles} | MB | KL |", "|---|---|" + "---:|" * (len(shapes) + 2)]
        for cell in (cell for cell in cells if cell["threads"] == threads):
            times = " | ".join(f"{speedup(cell[shape]):.2f}× ({cell[shape]['ms'][1]:.1f} ms)" for shape in shapes)
            size = f"{cell['about']['bytes'] / 1e6:.1f}" if "bytes" in cell.get("about", {}) else "–"
            ran, far = ("torch", "–") if cell["way"] == PRODUCTS else (cell["runtime"], f"{cell['kl']:.5f}")
            lines.append(f"| {cell['way']} | {ran} | {times} | {size} | {far} |")
        lines.append("")
    judged = [cell for cell in cells if "accuracy" in cell]
    return [*lines, *(line for cell in judged for line in (_accuracy_line(cell), ""))]


def _accuracy_line(cell: dict) -> str:
    of = cell["accuracy"]
    return (
        f"Accuracy of {cell['way']} in {cell['runtime']}: {of['value']:.4f}, dense {of['dense']:.4f}; the difference "
        f"is {100 * of['change']:+.2f} points (95 % interval {100 * of['low']:+.2f} to {100 * of['high']:+.2f})."
    )


def _made_by(lm: LanguageModel, name: str) -> LanguageModel:
    """The model that a built-in recipe makes of `lm`."""
    recipe = read_recipe(find_file(name, "recipe"))
    data = Sampling(samples=recipe.samples, seed=recipe.seed).of(lm, read(DATA, "train"), silent)
    small = replace(clone(lm), original=lm)
    for step in recipe.steps:
        step.apply(small, data)
    return small


def _compressed(lm: LanguageModel, step: Compress | Narrow) -> LanguageModel:
    small = clone(lm)
    step.apply(small, calibration(lm, DATA, CALIBRATION_ROWS, seed=0) if step.needs_data else None)
    return small
