"""Compare budgets shared out by predicted losses, with and without correction, and the same size for every matrix.

The methods are `kfac-prune` with one threshold for all matrices (`allocate: global`), in one shot and in several, and
`kfac-svd` with ranks by `allocate: spectrum`, on small models. 64 training rows calibrate, and 64 others evaluate: KL
divergence from the dense model, in nats per prediction. Seconds are without the first statistics, which all variants
share. Each finished cell is one line of benchmarks/results/allocation.jsonl. An interrupted run continues; to start
again, delete the file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.progress import track
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import Cells, in_bold, load_model, mean_of
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.compress import Allocation, Compress
from laconic.compress.allocators.corrected import ALLOCATED
from laconic.compress.kl_metric import KLMetric
from laconic.methods import KfacPrune, KfacSvd
from laconic.model import LanguageModel

MODELS = {
    "stories260K": "tinystories",
    "a random Llama": "tinystories",
    "mico-tinyllama-1m": "tinystories",
    "bart-g2p-us": "g2p",
    "minilm-sst2": "glue/sst2",
}
"""The source of the rows of each model."""

ROWS = 64
MAX_LENGTH = 96
SEEDS = (0, 1)
CELLS = Cells("allocation", ("model", "seed", "size", "way"))


@dataclass(frozen=True)
class Variant:
    """A step without a size; with several `shots`, statistics are collected again before each.

    measured: True corrects predictions on the calibration rows; False uses them unchanged.
    """

    allocate: Allocation
    measured: bool = True
    shots: int = 1


ZEROS: dict[str, Variant] = {
    "uniform": Variant("uniform"),
    "by predictions": Variant("global", measured=False),
    "global": Variant("global"),
    "uniform, two shots": Variant("uniform", shots=2),
    "global, two shots": Variant("global", shots=2),
    "uniform, three shots": Variant("uniform", shots=3),
    "global, three shots": Variant("global", shots=3),
}
RANKS: dict[str, Variant] = {
    "uniform": Variant("uniform"),
    "by predictions": Variant("spectrum", measured=False),
    "spectrum": Variant("spectrum"),
}
SPARSITIES = ("50 % zeros", "70 % zeros")
KEEPS = ("keep 0.8", "keep 0.5", "keep 0.35")
PRUNED = ("stories260K", "a random Llama")
BEGIN = "<!-- allocation, made by `python -m benchmarks allocation_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), help="some of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    options = parser.parse_args(argv)
    for name in options.only:
        for seed in options.seeds:
            missing = CELLS.missing((name, seed, size, variant) for size, variant in wanted(name))
            if missing:
                setup = load_setup(name, seed)
                for key in track(missing, f"{name}, seed {seed}"):
                    CELLS.add(key, measure_cell(setup, *key[2:]))
    print(f"{CELLS}; `python -m benchmarks allocation_tables` makes the tables")


def wanted(name: str) -> list[tuple[str, str]]:
    """The sizes and variants that a model is measured at; several shots only at high sparsity."""
    pruned = [
        (size, variant)
        for size in SPARSITIES
        for variant in ZEROS
        if ZEROS[variant].shots == 1 or size == SPARSITIES[-1]
    ]
    return [*(pruned if name in PRUNED else ()), *((size, variant) for size in KEEPS for variant in RANKS)]


@dataclass(frozen=True)
class Setup:
    """A model, its calibration data and statistics, and the KL divergence on other rows."""

    lm: LanguageModel
    data: Calibration
    stats: dict[str, LayerStats]
    metric: KLMetric


def load_setup(name: str, seed: int) -> Setup:
    """Load a model and collect its statistics."""
    lm = random_llama(seed) if name == "a random Llama" else load_model(name)
    corpus = sample(read(MODELS[name], "train"), 2 * ROWS, seed)
    parts = [replace(corpus, examples=corpus.examples[part]) for part in (slice(ROWS), slice(ROWS, None))]
    first, last = (batches(lm, part, batch_size=16, max_length=MAX_LENGTH) for part in parts)
    data = Calibration(first, seed=seed)
    stats = collect_stats(lm, data, KfacPrune().needs | KfacSvd().needs, lm.sites())
    return Setup(lm, data, stats, KLMetric(lm, last))


def random_llama(seed: int) -> LanguageModel:
    """A Llama of 0.9 million random parameters, with the tokenizer of stories260K."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.06,
    )
    return replace(load_model("stories260K"), model=LlamaForCausalLM(config).eval())


def measure_cell(setup: Setup, size: str, variant: str) -> dict:
    """Measure one cell."""
    small = setup.lm.shallow_copy()
    start = time.perf_counter()
    stats, taken = setup.stats, ""
    for step in steps_of(size, variant):
        stats = stats or collect_stats(small, setup.data, step.needs, small.sites())
        outcome = step.apply_with(small, stats, setup.data if _way(size, variant).measured else None)
        taken += outcome.found[ALLOCATED]["taken"] + " " if ALLOCATED in outcome.found else ""
        stats = {}
    return {"seconds": time.perf_counter() - start, "taken": taken.strip(), "kl": setup.metric(small)}


def steps_of(size: str, variant: str) -> list[Compress]:
    """The steps that end at `size`; each shot keeps the same fraction of the remaining weights."""
    asked = _way(size, variant)
    if size in KEEPS:
        return [Compress(method=KfacSvd(), keep=float(size.split()[1]), allocate=asked.allocate)]
    kept = 1 - float(size.split(maxsplit=1)[0]) / 100
    sparsities = [round(1 - kept ** (shot / asked.shots), 4) for shot in range(1, asked.shots + 1)]
    return [Compress(method=KfacPrune(sparsity=sparsity), allocate=asked.allocate) for sparsity in sparsities]


def _way(size: str, variant: str) -> Variant:
    return (RANKS if size in KEEPS else ZEROS)[variant]


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/pruning.md and docs/figures/low-rank.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    replace_between(ROOT / "docs/figures/pruning.md", table(SPARSITIES, list(ZEROS)), BEGIN)
    replace_between(ROOT / "docs/figures/low-rank.md", table(KEEPS, list(RANKS)), BEGIN)


def table(sizes: Sequence[str], variants: Sequence[str]) -> str:
    """One row for each model and size, one column for each variant: mean KL and seconds; the least KL is bold."""
    lines = [f"| model | | {' | '.join(variants)} |", "|---|---|" + "---:|" * len(variants)]
    for name in MODELS:
        for size in sizes:
            here = {variant: CELLS.where(model=name, size=size, way=variant) for variant in variants}
            kls = {variant: mean_of(cells, "kl") for variant, cells in here.items()}
            least = min(kls.values())
            if not any(here.values()):
                continue
            entries = [
                f"{in_bold(f'{kls[variant]:.3g}', kls[variant] == least)} ({mean_of(cells, 'seconds'):.0f} s)"
                if cells
                else ""
                for variant, cells in here.items()
            ]
            lines.append(f"| {name} | {size} | {' | '.join(entries)} |")
    return "\n".join([*lines, ""])
