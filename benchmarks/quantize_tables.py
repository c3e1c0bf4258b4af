"""The tables and figures of docs/quantization.md, made from benchmarks/results/."""

import argparse
from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure

from benchmarks.cells import in_bold, mean_of, spread
from benchmarks.quantize_quality import CELLS
from benchmarks.quantizing import BITS, COMBINATIONS, GROUNDS, GROUPS, METHODS
from benchmarks.tables import ROOT, replace_between
from laconic.report import plots
from laconic.report.points import Point

PAGE = ROOT / "docs/quantization.md"
BEGIN = "<!-- made by `python -m benchmarks quantize_tables` -->"
DRAWN_GROUP = 64


def main(argv: Sequence[str]) -> None:
    """Write what is measured by now into docs/quantization.md, and the figures beside it."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    parts = []
    for name in GROUNDS:
        mine = CELLS.where(model=name)
        if mine:
            plots.save(figure(name, mine), ROOT / f"docs/quantization-{name}")
            parts.append(everything(name, mine))
    replace_between(PAGE, "\n".join(parts), BEGIN)


def everything(name: str, mine: list[dict]) -> str:
    """KL and metric of every method alone, then of combinations by their bytes."""
    dense, seeds = mine[0]["dense_metric"], len({cell["seed"] for cell in mine})
    lines = [
        f"### {name} ({GROUNDS[name].metric} {dense:.3f} dense)",
        "",
        f"![KL against bytes kept](quantization-{name}.png)",
        "",
        f"KL to the dense model / {GROUNDS[name].metric}; calibration seeds: {seeds}",
        "",
        f"| group | method | {' | '.join(f'{bits} bits' for bits in BITS)} |",
        "|---|---|" + "---|" * len(BITS),
    ]
    for group in GROUPS:
        lines += _of_group(mine, group)
    done = [(way, here) for way in COMBINATIONS if (here := _of(mine, way))]
    if done:
        lines += ["", f"| combination | % of bytes | file, MB | KL, nats | {GROUNDS[name].metric} |"]
        lines.append("|---|---:|---:|---:|---:|")
        done.sort(key=lambda pair: mean(cell["bytes"] for cell in pair[1]))
        lines += [_combined(way, here) for way, here in done]
    return "\n".join([*lines, ""])


def figure(name: str, mine: list[dict]) -> Figure:
    """KL against the bytes really kept: one line a method in groups of 64, and one of every mixed precision."""
    lines = {method: [f"{method}, {bits} bits, {DRAWN_GROUP}" for bits in BITS] for method in METHODS}
    lines |= {"mixed": [way for way in COMBINATIONS if way.startswith("mixed")]}
    points = [
        Point(
            method=line,
            keep=here[0]["bytes"] / here[0]["dense_bytes"],
            nbytes=round(mean(cell["bytes"] for cell in here)),
            dense_nbytes=here[0]["dense_bytes"],
            file_bytes=0,
            kl=mean(cell["kl"] for cell in here),
            agreement=float("nan"),
            latency=float("nan"),
        )
        for line, ways in lines.items()
        for way in ways
        if (here := _of(mine, way))
    ]
    return plots.trade_off(points, f"KL to the dense {name}, nats")


def _of_group(mine: list[dict], group: int | str) -> list[str]:
    """The lines of one group size; the least KL of each number of bits is bold."""
    every = {(m, b): here for m in METHODS for b in BITS if (here := _of(mine, f"{m}, {b} bits, {group}"))}
    means = {key: mean(cell["kl"] for cell in here) for key, here in every.items()}
    lines = []
    for method in METHODS:
        if not any((method, bits) in every for bits in BITS):
            continue
        entries = []
        for bits in BITS:
            if (method, bits) not in every:
                entries.append("not run")
                continue
            text = f"{means[method, bits]:.4f} / {mean_of(every[method, bits], 'metric'):.3f}"
            least = means[method, bits] == min(kl for (_, other), kl in means.items() if other == bits)
            entries.append(in_bold(text, least))
        lines.append(f"| {group} | {method} | {' | '.join(entries)} |")
    one = [next((here for (_, other), here in every.items() if other == bits), None) for bits in BITS]
    if lines:
        shares = [f"{here[0]['bytes'] / here[0]['dense_bytes']:.1%}" if here else "" for here in one]
        lines.append(f"| | *of the bytes* | {' | '.join(shares)} |")
    return lines


def _combined(way: str, here: list[dict]) -> str:
    share = mean_of(here, "bytes") / here[0]["dense_bytes"]
    size, kl = mean_of(here, "file_bytes") / 1e6, spread([cell["kl"] for cell in here], 4)
    return f"| {way} | {share:.1%} | {size:.2f} | {kl} | {mean_of(here, 'metric'):.3f} |"


def _of(mine: list[dict], way: str) -> list[dict]:
    return [cell for cell in mine if cell["way"] == way]
