"""The tables of docs/int8.md, made from benchmarks/results/int8_kernels.jsonl and int8.jsonl.

Figures of two machines do not belong into one table: shown is the machine that measured last.
"""

import argparse
from collections.abc import Sequence

from benchmarks import int8, int8_kernels
from benchmarks.lowrank import METRICS, MODELS
from benchmarks.tables import ROOT, replace_between

KERNELS = "<!-- kernels, made by `python -m benchmarks int8_tables` -->"
SHOWN = (1, 16, 256)
"""Numbers of rows that are shown of those that were measured."""
ENCODERS = "<!-- encoders, made by `python -m benchmarks int8_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Write what is measured by now into docs/int8.md."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    page = ROOT / "docs/int8.md"
    if rows := int8_kernels.measured():
        replace_between(page, "\n".join(kernels(_of_last(rows))), KERNELS)
    if rows := int8.rows_of_all():
        replace_between(page, "\n".join(encoders(_of_last(rows))), ENCODERS)


def kernels(rows: list[dict]) -> list[str]:
    """A table for each family and dtype: a dense product, and how many times as fast each kernel is."""
    lines = [f"{_spoken(rows[0]['machine'])}.", ""]
    for family, dtype in dict.fromkeys((row["family"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["family"], row["dtype"]) == (family, dtype) and row["rows"] in SHOWN]
        names = list(dict.fromkeys(name for row in mine for name in row["seconds"] if name != "dense"))
        titles = " | ".join(f"`{name}`" for name in names)
        lines += [f"**{family}, inputs in {dtype}**", ""]
        lines += [f"| (out, in) | rows | dense | {titles} |", "|---|---:|---:|" + "---:|" * len(names)]
        for row in sorted(mine, key=lambda row: (row["out"] * row["in"], row["out"], row["rows"])):
            dense, seconds = row["seconds"]["dense"], row["seconds"]
            entries = [f"{dense / seconds[name]:.2f}×" if name in seconds else "wrong here" for name in names]
            shape = f"({row['out']}, {row['in']})"
            lines.append(f"| {shape} | {row['rows']} | {1e3 * dense:.2f} ms | {' | '.join(entries)} |")
        lines.append("")
    return lines


def encoders(rows: list[dict]) -> list[str]:
    """A table for each model: quality, and how many times as fast as dense torch."""
    runs = sorted({row["runs"] for row in rows})
    lines = [f"{_spoken(rows[0]['machine'])}; {', '.join(map(str, runs))} timed runs of each.", ""]
    shapes = [f"{batch}x{length}" for batch, length in int8.SHAPES]
    for name in MODELS:
        titles = " | ".join(shape.replace("x", " × ") for shape in shapes)
        lines += [f"| {name}, {METRICS[name]} | value | KL | error | {titles} |", "|---|" + "---:|" * (3 + len(shapes))]
        for row in (row for row in rows if row["model"] == name):
            times = " | ".join(f"{row[shape]['dense_ms'][1] / row[shape]['ms'][1]:.2f}×" for shape in shapes)
            quality = f"{row['value']:.2f} | {row['kl']:.5f} | {row['error']:.1%}"
            lines.append(f"| {row['way']} | {quality} | {times} |")
        lines.append("")
    return lines


def _of_last(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["machine"] == rows[-1]["machine"]]


def _spoken(machine: dict) -> str:
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{machine['processor']}, {machine['instructions']}, {threads}, torch {machine['torch']}"
