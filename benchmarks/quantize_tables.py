"""Write the tables and figures of docs/figures/quantization.md from benchmarks/results/."""

import argparse
from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure

from benchmarks.common import mean_of, places_of, short_quality, spread
from benchmarks.quantizing import BITS, CELLS, COMBINATIONS, GROUPS, METHODS, TEST_SETS
from benchmarks.tables import ROOT, replace_between
from laconic.report import plots
from laconic.report.evaluation import Point

PAGE = ROOT / "docs/figures/quantization.md"
BEGIN = "<!-- made by `python -m benchmarks quantize_tables` -->"
DRAWN_GROUP, DRAWN_BITS = 64, 4
"""Group size and bits of the pictures. At 8 bits all look alike; the tables of `kmeans` pay only for whole rows."""
AS_MANY = 0.02
"""Two numbers of bytes that differ by less than this share count as equal."""


def main(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/quantization.md, and the figures beside it."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    parts = []
    for name in TEST_SETS:
        mine = CELLS.where(model=name)
        if mine:
            plots.save(figure(name, mine), ROOT / f"docs/figures/quantization-{name}")
            parts.append(everything(name, mine))
    replace_between(PAGE, "\n".join(parts), BEGIN)


def everything(name: str, mine: list[dict]) -> str:
    """KL and metric of every method alone, then of combinations by their bytes."""
    dense, seeds = mine[0]["dense_metric"], len({cell["seed"] for cell in mine})
    lines = [
        f"### {name} ({TEST_SETS[name].metric} {dense:.3f} dense)",
        "",
        f"![KL against bytes kept](quantization-{name}.png)",
        "",
        f"KL to the dense model / {TEST_SETS[name].metric}; calibration seeds: {seeds}",
        "",
        f"| group | method | {' | '.join(f'{bits} bits' for bits in BITS)} |",
        "|---|---|" + "---|" * len(BITS),
    ]
    for group in GROUPS:
        lines += _of_group(mine, group)
    done = [(variant, here) for variant in COMBINATIONS if (here := _of(mine, variant))]
    if done:
        lines += ["", f"| combination | % of bytes | file, MB | KL, nats | {TEST_SETS[name].metric} |"]
        lines.append("|---|---:|---:|---:|---:|")
        done.sort(key=lambda pair: mean(cell["bytes"] for cell in pair[1]))
        lines += [_combined(variant, here) for variant, here in done]
    return "\n".join([*lines, ""])


def figure(name: str, mine: list[dict]) -> Figure:
    """KL against the bytes that were kept: one line a method in groups of 64, and one of every mixed precision."""
    drawn = [bits for bits in BITS if bits <= DRAWN_BITS]
    groups = {method: "channel" if method == "kmeans" else DRAWN_GROUP for method in METHODS}
    lines = {method: [f"{method}, {bits} bits, {group}" for bits in drawn] for method, group in groups.items()}
    lines |= {"mixed": [variant for variant in COMBINATIONS if variant.startswith("mixed")]}
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
        for line, variants in lines.items()
        for variant in variants
        if (here := _of(mine, variant))
    ]
    return plots.trade_off(points, f"KL to the dense {name}, nats")


def _of_group(mine: list[dict], group: int | str) -> list[str]:
    """The lines of one group size; for each number of bits the least KL among equal bytes is bold."""
    every = {(m, b): here for m in METHODS for b in BITS if (here := _of(mine, f"{m}, {b} bits, {group}"))}
    if not every:
        return []
    usual = {bits: next((_share(here) for (_, other), here in every.items() if other == bits), None) for bits in BITS}
    lines = [
        f"| {group} | {method} | {' | '.join(_entry(every, method, bits, usual[bits]) for bits in BITS)} |"
        for method in METHODS
        if any((method, bits) in every for bits in BITS)
    ]
    shares = [f"{share:.1%}" if share else "" for share in usual.values()]
    return [*lines, f"| | *of the bytes* | {' | '.join(shares)} |"]


def _entry(every: dict[tuple[str, int], list[dict]], method: str, bits: int, usual: float | None) -> str:
    """KL and metric, with the share of the bytes if it differs from the usual one for these bits."""
    here = every.get((method, bits))
    if here is None or usual is None:
        return "not run"
    if not _alike(_share(here), usual):
        return f"{short_quality(here)} ({_share(here):.1%})"
    rivals = [other for (_, number), other in every.items() if number == bits and _alike(_share(other), usual)]
    return short_quality(here, mean_of(here, "kl") == min(mean_of(other, "kl") for other in rivals))


def _share(here: list[dict]) -> float:
    return here[0]["bytes"] / here[0]["dense_bytes"]


def _alike(share: float, usual: float) -> bool:
    return abs(share - usual) <= AS_MANY * usual


def _combined(variant: str, here: list[dict]) -> str:
    share = mean_of(here, "bytes") / here[0]["dense_bytes"]
    kls = [cell["kl"] for cell in here]
    size, kl = mean_of(here, "file_bytes") / 1e6, spread(kls, places_of(mean(kls)))
    return f"| {variant} | {share:.1%} | {size:.2f} | {kl} | {mean_of(here, 'metric'):.3f} |"


def _of(mine: list[dict], variant: str) -> list[dict]:
    return [cell for cell in mine if cell["way"] == variant]
