"""Experts that saw few tokens: KL on held-out rows with their statistics shrunk, and with their own alone.

The experts of the small mixture of `python -m benchmarks mixture_models` are compressed with few calibration rows of
128 tokens, of which two of 16 experts read each. Fewer than 128 tokens of an expert are fewer than its matrices are
wide.
"""

import argparse
from collections.abc import Iterator, Sequence
from statistics import mean

import torch
from rich.progress import track

from benchmarks.common import Cells, clone, kl, places_of, predictions, spread
from benchmarks.mixture_models import (
    EXPERTS,
    LENGTH,
    PER_TOKEN,
    held_out_texts,
    missing_data,
    rows_of,
    tokenizer,
    trained_model,
    training_texts,
)
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration, LayerStats, collect_stats
from laconic.compress import Compress
from laconic.methods import Drone, Gptq, KfacSvd, Method
from laconic.model import Batch, LanguageModel, load

METHODS: dict[str, tuple[Method, float | None]] = {
    "gptq, 3 bits": (Gptq(bits=3, group_size=64), None),
    "drone": (Drone(multiple=1), 0.5),
    "kfac-svd": (KfacSvd(multiple=1), 0.5),
}
ROWS = (2, 4, 8, 32)
SEEDS = (0, 1, 2)
HELD_OUT = 48
WAYS = ("shrunk", "own")
CELLS = Cells("few_tokens", ("method", "rows", "seed", "way"))
BEGIN = "<!-- made by `python -m benchmarks few_tokens_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Measure the cells that are missing; write benchmarks/results/few_tokens.jsonl and the table in docs."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    if (reason := missing_data()) is not None:
        print(f"Nothing was measured: {reason}.")
        return
    torch.set_num_threads(1)
    lm = load(str(trained_model("mixture")))
    held_out = list(batches(rows_of(held_out_texts(), tokenizer())[:HELD_OUT]))
    reference = predictions(lm, held_out)
    texts = rows_of(training_texts(), tokenizer())
    cases = [(rows, seed, way) for rows in ROWS for seed in SEEDS for way in WAYS]
    for rows, seed, way in track(cases, "Compressing experts"):
        missing = CELLS.missing([(name, rows, seed, way) for name in METHODS])
        if not missing:
            continue
        chosen = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:rows]
        stats = measure(lm, Calibration(list(batches(texts[chosen])), seed=seed), way)
        for key in missing:
            method, keep = METHODS[key[0]]
            copy = clone(lm)
            # Neither the statistics nor what a method works out from them pass between the ways.
            own = {name: LayerStats(of, of.support) for name, of in stats.items()}
            Compress(method=method, keep=keep, targets=("experts",), allow_dense=True).apply_with(copy, own)
            token_counts = [of.token_count or 0 for of in stats.values()]
            CELLS.add(key, {"kl": kl(reference, predictions(copy, held_out)), "tokens": min(token_counts)})
    print(describe())
    print(CELLS)
    write_tables([])


def batches(rows: torch.Tensor) -> Iterator[Batch]:
    """Batches of at most 16 rows without padding."""
    for part in rows.split(16):
        yield {"input_ids": part, "attention_mask": torch.ones_like(part)}


def measure(lm: LanguageModel, data: Calibration, way: str) -> dict[str, LayerStats]:
    """The statistics of all experts; with `own`, those of starved experts are left as they are."""
    needs = frozenset().union(*(method.needs for method, _ in METHODS.values()))
    return collect_stats(lm, data, needs, lm.sites(("experts",)), shrink_starved=way == "shrunk")


def describe() -> str:
    """The table of KL by method and calibration rows."""
    tokens = {rows: rows * LENGTH * PER_TOKEN // EXPERTS for rows in ROWS}
    lines = [
        "| | statistics | " + " | ".join(f"{rows} rows, {tokens[rows]} tokens" for rows in ROWS) + " |",
        "|---|---|" + "---:|" * len(ROWS),
    ]
    for name in METHODS:
        for way in WAYS:
            cells = [[cell["kl"] for cell in CELLS.where(method=name, rows=rows, way=way)] for rows in ROWS]
            shown = " | ".join(spread(kls, places_of(mean(kls), 3)) if kls else "" for kls in cells)
            lines.append(f"| {name} | {way} | {shown} |")
    return "\n".join(lines)


def write_tables(argv: Sequence[str]) -> None:
    """Write the latest measurement into docs/figures/experts.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    if CELLS.path.exists():
        replace_between(ROOT / "docs/figures/experts.md", f"{describe()}\n", BEGIN)
