"""Time of one product on every int8 and 4-bit kernel with correct sums on this machine, beside the dense layer.

The matrices are random, in the shapes of small and medium models. Caches are cold for up to 64 rows. Each finished
product is one line of benchmarks/results/int8_kernels.jsonl, with the machine. An interrupted run continues; another
machine measures everything again. `python -m benchmarks int8_tables` writes the tables.
"""

import argparse
import json
from collections.abc import Sequence

import torch
from rich.progress import track

from benchmarks import int8
from benchmarks.common import RESULTS
from benchmarks.lowrank import METRICS, MODELS
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import ROWS, ProductShape, machine, time_kernels
from laconic.formats.int4_kernels import Int4Family
from laconic.formats.int8 import INT8
from laconic.formats.kernels import KernelFamily

PATH = RESULTS / "int8_kernels.jsonl"
SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 3072), (4096, 4096), (32000, 768))
"""(out, in)."""
FAMILIES: dict[str, KernelFamily] = {"int8": INT8, "4 bits, groups of 64": Int4Family(4, 64, symmetric=False)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAME = ("family", "out", "in", "rows", "dtype")
"""Fields that identify a measurement, together with the machine."""


def main(argv: Sequence[str]) -> None:
    """Measure every product that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--most-weights", type=int, default=2**31, help="leave out matrices of more")
    parser.add_argument("--rows", nargs="+", type=int, choices=ROWS, default=list(ROWS), help="some numbers of rows")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="of the inputs")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    RESULTS.mkdir(exist_ok=True)
    here = machine()
    done = {key_of(row) for row in measured_rows_of(here)}
    questions = [
        {"family": family, "out": out, "in": width, "rows": rows, "dtype": dtype}
        for dtype in options.dtypes
        for family in FAMILIES
        for out, width in SHAPES
        for rows in options.rows
        if out * width <= options.most_weights and rows <= FAMILIES[family].max_rows
    ]
    for asked in track([asked for asked in questions if key_of(asked) not in done], "products"):
        question = ProductShape(asked["rows"], asked["out"], asked["in"], DTYPES[asked["dtype"]])
        seconds = time_kernels(FAMILIES[asked["family"]], question)
        with PATH.open("a") as file:
            file.write(json.dumps({**asked, "seconds": seconds, "machine": here}) + "\n")


def measured_rows_of(here: dict) -> list[dict]:
    """The measurements of one machine."""
    return [row for row in measured() if row["machine"] == here]


def measured() -> list[dict]:
    """All measurements, in the order of the file."""
    return [json.loads(line) for line in PATH.read_text().splitlines()] if PATH.exists() else []


def key_of(row: dict) -> tuple:
    return tuple(row[name] for name in SAME)


KERNELS = "<!-- kernels, made by `python -m benchmarks int8_tables` -->"
SHOWN = (1, 16, 256)
"""The numbers of rows in the tables; more are measured."""
ENCODERS = "<!-- encoders, made by `python -m benchmarks int8_tables` -->"


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/int8.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    page = ROOT / "docs/figures/int8.md"
    if rows := measured():
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
