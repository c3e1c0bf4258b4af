"""The tables of docs/ranks.md, made from benchmarks/results/: rank rules, rank sweep, search, budgets of time."""

import argparse
import json
from collections.abc import Sequence

from benchmarks.common import RESULTS
from benchmarks.lowrank import METRICS, MODELS
from benchmarks.rank_sweep import CELLS, RANKS, RULES, SWEEP
from benchmarks.tables import ROOT, replace_between

BEGIN = "<!-- made by `python -m benchmarks rank_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Write the tables into docs/ranks.md."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    parts = [*(rules(name) + sweep(name) for name in MODELS), searched(), budgets()]
    replace_between(ROOT / "docs/ranks.md", "\n".join(parts), BEGIN)


def rules(name: str) -> str:
    """The three rank rules."""
    mine = {cell["recipe"]: cell for cell in CELLS.where(model=name)}
    dense = next(iter(mine.values()))["dense_metric"]
    lines = [
        f"## {name} ({METRICS[name]} {dense:.3f} dense)",
        "",
        f"| rule | bytes kept | KL, nats | {METRICS[name]} |",
        "|---|---:|---:|---:|",
        *(f"| {rule} | {_kept(mine[rule])} | {mine[rule]['kl']:.4f} | {_metric(mine[rule])} |" for rule in RULES),
    ]
    return "\n".join([*lines, "", ""])


def sweep(name: str) -> str:
    """Metric and KL by rank, a column for each way."""
    mine = {(cell["recipe"], cell["rank"]): cell for cell in CELLS.where(model=name)}
    lines = [
        f"| rank (of 384) | bytes kept | {' | '.join(recipe.removeprefix('rank-') for recipe in SWEEP)} |",
        "|---|---:|" + "---:|" * len(SWEEP),
    ]
    for rank in RANKS:
        here = [mine.get((recipe, rank)) for recipe in SWEEP]
        entries = " | ".join(f"{_metric(cell)} / {cell['kl']:.4f}" if cell else "not run" for cell in here)
        kept = next((_kept(cell) for cell in here if cell), "")
        lines.append(f"| {rank} | {kept} | {entries} |")
    return "\n".join([*lines, ""])


def searched() -> str:
    """The search by an error, beside the other ways at as many bytes."""
    rows = json.loads((RESULTS / "threshold.json").read_text())["rows"]
    lines = [
        "## Ranks searched by an error",
        "",
        "`python -m benchmarks threshold`: minilm-sst2, drone, attention and feed-forward matrices.",
        "",
        "| KL allowed | on calibration | held out | accuracy | bytes kept | uniform there | spectrum there |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['error']} | {row['kl_on_calibration']:.4f} | {row['kl']:.4f} | {row['metric']:.3f} "
            f"| {row['bytes']:.3f} | {row['kl_uniform']:.4f} | {row['kl_spectrum']:.4f} |"
        )
    return "\n".join([*lines, ""])


def budgets() -> str:
    """What a budget of time came to."""
    measured = json.loads((RESULTS / "latency_budget.json").read_text())
    lines = [
        "## Budgets of time",
        "",
        f"`python -m benchmarks latency_budget`: minilm-sst2, kfac-svd, {measured['batch']} × {measured['length']} "
        f"tokens, float32, eager, {measured['threads']} thread.",
        "",
        "| keep of the latency | inputs shared | measured | off by | bytes kept | KL, nats |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for row in measured["rows"]:
        lines.append(
            f"| {row['keep']} | {'yes' if row['share_inputs'] else 'no'} | {row['measured']:.3f} "
            f"| {row['measured'] / row['keep'] - 1:+.1%} | {_kept(row)} | {row['kl']:.4f} |"
        )
    return "\n".join([*lines, ""])


def _kept(cell: dict) -> str:
    return f"{cell['bytes'] / cell['dense_bytes']:.3f}"


def _metric(cell: dict) -> str:
    return f"{cell['metric']:.3f}"
