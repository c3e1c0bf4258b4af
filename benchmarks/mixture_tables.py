"""Write the tables of docs/figures/mixture.md from benchmarks/results/mixture.jsonl."""

import argparse
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import numpy as np

from benchmarks.mixture import CALIBRATION_ROWS, CELLS, FEW_ROWS, FEW_WAYS, TEST_ROWS, UNCOMPRESSED, WAYS
from benchmarks.mixture_models import EXPERTS, MODELS
from benchmarks.tables import ROOT, replace_between
from laconic.evaluate.metrics import Interval, interval
from laconic.model.active_parameters import count_active

PAGE = ROOT / "docs/figures/mixture.md"
BEGIN = "<!-- made by `python -m benchmarks mixture_tables` -->"
BY_EXPERT = "<!-- by expert, made by `python -m benchmarks mixture_tables` -->"
QUARTERS = 4
LEAST_TOKENS = 50
"""Fewest test tokens of an expert whose mean KL counts."""

Cell = Mapping
Row = tuple[str, ...]


def main(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    replace_between(PAGE, "\n".join([*models(), "", *ways(), ""]), BEGIN)
    replace_between(PAGE, "\n".join([*by_expert(CALIBRATION_ROWS), "", *by_expert(FEW_ROWS), ""]), BY_EXPERT)


def models() -> list[str]:
    """Size and perplexity of the uncompressed models."""
    rows = []
    for cell in CELLS.where(way=UNCOMPRESSED):
        name, parameters = cell["model"], cell["parameters"]
        active = count_active(MODELS[name]())
        counts = (f"{parameters:,d}", f"{parameters if active is None else active.active:,d}")
        kinds = [f"{np.exp(kind.mean()):.1f}" for kind in np.split(np.array(cell["dense_nats"]), [TEST_ROWS])]
        rows.append((name, *counts, megabytes(cell["dense_bytes"]), figure(perplexity(cell["dense_nats"]), 1), *kinds))
    heads = ("model", "parameters", "active parameters", "MB in the blocks", "perplexity", "stories", "articles")
    return table(heads, rows)


def ways() -> list[str]:
    """Bytes, perplexity and KL of every way; both models side by side where both have it."""
    rows = []
    for way in dict.fromkeys(way for of_model in WAYS.values() for way in of_model):
        row = [way]
        for name in WAYS:
            here = CELLS.where(model=name, way=way, rows=CALIBRATION_ROWS)
            row += costs(here) if here else [""] * 3
        if any(row[1:]):
            rows.append(tuple(row))
    heads = [f"{name}: {what}" for name in WAYS for what in ("MB", "perplexity", "KL")]
    return table(("", *heads), rows)


def costs(cells: Sequence[Cell]) -> list[str]:
    """Megabytes, perplexity and KL of one way, means over the seeds."""
    # `narrow` counts only the experts, and the attentions stay as they are.
    dense = max(cell["dense_bytes"] for cell in CELLS.where(model=cells[0]["model"]))
    nbytes = cells[0]["bytes"] + dense - cells[0]["dense_bytes"]
    return [megabytes(nbytes), figure(perplexity(average_seeds(cells, "nats")), 1), divergence(cells)]


def by_expert(rows: int) -> list[str]:
    """KL by quarter of the experts of each block, from those with the fewest calibration tokens to those with most."""
    cells = CELLS.where(model="mixture", rows=rows)
    if not cells:
        return []
    tokens = [sorted(block) for cell in cells for block in cell["calibrated"]]
    each = EXPERTS // QUARTERS
    spans = [[count for block in tokens for count in block[each * at : each * (at + 1)]] for at in range(QUARTERS)]
    lines = []
    for way in WAYS["mixture"] if rows == CALIBRATION_ROWS else FEW_WAYS:
        here = [cell for cell in cells if cell["way"] == way]
        if here:
            quarters = np.mean([quarter_kls(cell) for cell in here], axis=0)
            worst = max(worst_expert(cell) for cell in here)
            lines.append((way, *(f"{value:.3f}" for value in quarters), f"{worst:.2f}"))
    heads = [f"{min(span)} to {max(span)} tokens" for span in spans]
    return [f"Calibrated on {rows} rows of 128 tokens:", "", *table(("", *heads, "worst expert"), lines)]


def quarter_kls(cell: Cell) -> list[float]:
    """The mean KL of the tokens whose first expert is in each quarter of its block."""
    sums, counts = np.zeros(QUARTERS), np.zeros(QUARTERS)
    for calibrated, kl, tokens in zip(cell["calibrated"], cell["expert_kl"], cell["expert_tokens"], strict=True):
        for place, expert in enumerate(np.argsort(calibrated, kind="stable")):
            quarter = place * QUARTERS // EXPERTS
            sums[quarter] += kl[expert]
            counts[quarter] += tokens[expert]
    return (sums / counts).tolist()


def worst_expert(cell: Cell) -> float:
    """The largest mean KL of the tokens of one expert, divided by that of all tokens."""
    each = [
        kl / tokens
        for kls, counts in zip(cell["expert_kl"], cell["expert_tokens"], strict=True)
        for kl, tokens in zip(kls, counts, strict=True)
        if tokens >= LEAST_TOKENS
    ]
    return max(each) / mean(cell["kl"])


def average_seeds(cells: Sequence[Cell], what: str) -> list[float]:
    """The mean over the seeds of a value of each test row."""
    return np.mean([cell[what] for cell in cells], axis=0).tolist()


def perplexity(nats: Sequence[float]) -> Interval:
    """The perplexity, with its interval over the test rows."""
    return interval(lambda rows: float(np.exp(rows[:, 0].mean())), np.array(nats)[:, None])


def divergence(cells: Sequence[Cell]) -> str:
    """The mean KL with its interval over the test rows, and its standard deviation over the seeds."""
    kl = interval(lambda rows: float(rows[:, 0].mean()), np.array(average_seeds(cells, "kl"))[:, None])
    seeds = [mean(cell["kl"]) for cell in cells]
    deviation = f"± {stdev(seeds):.4f}, {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return f"{figure(kl, 4)} ({deviation})"


def figure(found: Interval, digits: int) -> str:
    """A value with its interval."""
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def megabytes(nbytes: int) -> str:
    """Bytes as megabytes."""
    return f"{nbytes / 1e6:.2f}"


def table(heads: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1), *lines]
