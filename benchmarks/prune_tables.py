"""Write into docs/figures/pruning.md the results on single weights, time and memory from benchmarks/results/."""

import argparse
import json
from collections.abc import Callable, Sequence
from statistics import mean

from matplotlib.figure import Figure

from benchmarks.common import RESULTS, places_of, short_quality, spread
from benchmarks.lowrank import METRICS, MODELS
from benchmarks.pruning import CALIBRATION_ROWS, CELLS, PATTERNS, SPARSITIES, VARIANTS
from benchmarks.tables import ROOT, replace_between
from laconic.report import plots
from laconic.report.evaluation import Point

PAGE = ROOT / "docs/figures/pruning.md"
BEGIN = "<!-- made by `python -m benchmarks prune_tables` -->"
TIME = "<!-- time, made by `python -m benchmarks prune_tables` -->"
MEMORY = "<!-- memory, made by `python -m benchmarks prune_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/pruning.md, and the figures beside it."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    parts = []
    for name in MODELS:
        mine = CELLS.where(model=name, rows=CALIBRATION_ROWS)
        if mine:
            plots.save(figure(name, mine), ROOT / f"docs/figures/pruning-{name}")
            parts.append(everything(name, mine))
    replace_between(PAGE, "\n".join(parts), BEGIN)
    replace_between(PAGE, time(), TIME)
    replace_between(PAGE, memory(), MEMORY)


def everything(name: str, mine: list[dict]) -> str:
    """KL and metric by sparsity, by pattern, then spreads, bytes and seconds of every cell."""
    dense = mine[0]["dense_metric"]
    lines = [
        f"### {name} ({METRICS[name]} {dense:.3f} dense)",
        "",
        f"![KL against bytes kept](pruning-{name}.png)",
        "",
        f"KL to the dense model / {METRICS[name]}, by sparsity:",
        "",
        *across(mine, SPARSITIES, lambda size: f"{float(size):.0%}"),
        "",
        "and by pattern:",
        "",
        *across(mine, PATTERNS, str),
        "",
        f"| zeros | method | KL, nats | {METRICS[name]} | most zeros in a matrix | matrices, MB | file, MB | seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size in (*SPARSITIES, *PATTERNS):
        for variant in VARIANTS:
            here = _at(mine, variant, size)
            if here:
                lines.append(_row(size, variant, here))
    return "\n".join([*lines, ""])


def across(mine: list[dict], sizes: Sequence[str], head: Callable[[str], str]) -> list[str]:
    """One row for each variant, one column for each size; the least KL of each size is bold."""
    lines = [f"| | {' | '.join(map(head, sizes))} |", "|---|" + "---|" * len(sizes)]
    measured = {(variant, size): _at(mine, variant, size) for variant in VARIANTS for size in sizes}
    means = {key: mean(cell["kl"] for cell in here) for key, here in measured.items() if here}
    least = {size: min((kl for (_, other), kl in means.items() if other == size), default=None) for size in sizes}
    for variant in VARIANTS:
        if not any(measured[variant, size] for size in sizes):
            continue
        entries = []
        for size in sizes:
            here = measured[variant, size]
            entries.append(short_quality(here, means[variant, size] == least[size]) if here else "not run")
        lines.append(f"| {variant} | {' | '.join(entries)} |")
    return lines


def time() -> str:
    """The table of time and bytes of pruned models."""
    result = json.loads((RESULTS / "prune_latency.json").read_text())
    dense = result["rows"][0]
    lines = [
        f"{result['model']}, batch {result['batch']} × {result['length']} tokens, {result['threads']} threads, "
        f"{result['instructions']}; dense: {dense['dense_file_bytes'] / 1e6:.1f} MB.",
        "",
        "| | matrices, MB | file, MB | ms | dense, ms | speed-up | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        whole, small = row["dense_ms"][1], row["ms"][1]
        verdict = "faster" if small < row["dense_ms"][0] and row["ms"][2] < whole else "**not faster**"
        lines.append(
            f"| {row['way']} | {row['bytes'] / 1e6:.2f} | {row['file_bytes'] / 1e6:.1f} "
            f"| {small:.0f} | {whole:.0f} | {whole / small:.2f}× | {verdict} |"
        )
    return "\n".join([*lines, ""])


def memory() -> str:
    """The table of one threshold over a billion weights."""
    result = json.loads((RESULTS / "global_threshold.json").read_text())
    lines = [
        "| | weights | in memory, GiB | peak, GiB | peak in units of the weights | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        start = f"| {row['way']} | {row['weights'] / 1e6:,.0f} million | {row['weight_bytes'] / 2**30:.2f} |"
        if "failed" in row:
            lines.append(f"{start} more than {row['limit_bytes'] / 2**30:.0f}: out of memory | | |")
        else:
            lines.append(f"{start} {row['peak_bytes'] / 2**30:.2f} | {row['ratio']:.2f} | {row['seconds']:.0f} |")
    return "\n".join([*lines, ""])


def figure(name: str, mine: list[dict]) -> Figure:
    """KL against the bytes that were kept, one line for each variant; each mark is the mean over the seeds."""
    points = [
        Point(
            method=variant,
            keep=1 - float(size),
            nbytes=round(mean(cell["bytes"] for cell in here)),
            dense_nbytes=here[0]["dense_bytes"],
            file_bytes=0,
            kl=mean(cell["kl"] for cell in here),
            agreement=float("nan"),
            latency=float("nan"),
        )
        for variant in VARIANTS
        for size in SPARSITIES
        if (here := _at(mine, variant, size))
    ]
    return plots.trade_off(points, f"KL to the dense {name}, nats")


def _at(mine: list[dict], variant: str, size: str) -> list[dict]:
    return [cell for cell in mine if cell["way"] == variant and cell["size"] == size]


def _row(size: str, variant: str, here: list[dict]) -> str:
    kls, metrics = [cell["kl"] for cell in here], [cell["metric"] for cell in here]
    shown = size if size in PATTERNS else f"{float(size):.0%}"
    most = max(cell["largest_sparsity"] for cell in here)
    megabytes = [mean(cell[what] for cell in here) / 1e6 for what in ("bytes", "file_bytes")]
    seconds = mean(cell["seconds"] for cell in here)
    return (
        f"| {shown} | {variant} | {spread(kls, places_of(mean(kls)))} | {spread(metrics, 3)} | {most:.1%} "
        f"| {megabytes[0]:.2f} | {megabytes[1]:.1f} | {seconds:.0f} |"
    )
