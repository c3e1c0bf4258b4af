"""Write the tables of docs/figures/llama-cpp.md from benchmarks/results/llama_cpp.jsonl."""

import argparse
from collections.abc import Mapping, Sequence
from math import hypot
from typing import Any

from benchmarks.llama_cpp import CELLS, IMATRIX, LACONIC, SIZES, SPEED, WAYS
from benchmarks.llama_cpp_types import table_rows
from benchmarks.mixture_tables import table
from benchmarks.tables import ROOT, replace_between

PAGE = ROOT / "docs/figures/llama-cpp.md"
BEGIN = "<!-- made by `python -m benchmarks llama_cpp_tables` -->"
RELATIVE = "KL, relative to the importance matrix"
HEADS = ("", "MB", "KL, nats", RELATIVE, "perplexity", "same token, %", "decode", "prefill", "minutes", "GB")
TYPE_HEADS = ("type", "bits a weight", "decode", "prefill")

Cell = Mapping[str, Any]


def main(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    models = dict.fromkeys(cell["model"] for cell in CELLS)
    lines = [line for model in models for line in section(model)]
    times = ["The time of each type, in picoseconds a weight:", "", *table(TYPE_HEADS, table_rows()), ""]
    replace_between(PAGE, "\n".join([*lines, *times]), BEGIN)


def section(model: str) -> list[str]:
    """The tables of one model."""
    lines = [f"### {model}", ""]
    for size in SIZES:
        cells = {cell["way"]: cell for cell in CELLS.where(model=model, size=size)}
        rows = [row(way, cells) for way in WAYS if way in cells and way != SPEED]
        if rows:
            lines += [f"The size of {size}:", "", *table(HEADS, rows), ""]
            lines += [f"- {way}: {types(cells[way])}" for way in (IMATRIX, LACONIC) if way in cells] + [""]
    return lines


def row(way: str, cells: Mapping[str, Cell]) -> tuple[str, ...]:
    """One file; its KL is also given relative to that of the importance matrix."""
    cell = cells[way]
    return (
        way,
        f"{cell['bytes'] / 1e6:.1f}",
        with_error(cell["kl"], 4),
        ratio(cell["kl"], cells[IMATRIX]["kl"]) if IMATRIX in cells else "",
        with_error(cell["perplexity"], 2),
        f"{cell['same_top'][0]:.1f}",
        *(speed(way, cells, name) for name in ("decode", "prefill")),
        f"{cell['cpu_seconds'] / 60:.1f}",
        f"{cell['peak'] / 1e9:.1f}",
    )


def speed(way: str, cells: Mapping[str, Cell], name: str) -> str:
    """The best speed of a file; both files that are compared were measured in turn."""
    measured = cells[SPEED]["speed"].get(way) if SPEED in cells else None
    return "" if measured is None else f"{max(measured[name]):.1f}"


def types(cell: Cell) -> str:
    """The number of tensors of each type in a file, without those in float32."""
    counts = sorted(cell["types"].items(), key=lambda item: -item[1])
    return ", ".join(f"{count} × {kind}" for kind, count in counts if kind != "f32")


def with_error(measured: Sequence[float], digits: int) -> str:
    """A mean with its standard error."""
    return f"{measured[0]:.{digits}f} ± {measured[1]:.{digits}f}"


def ratio(measured: Sequence[float], peer: Sequence[float]) -> str:
    """The ratio of two means; its standard error as if both were independent, which is an upper bound."""
    quotient = measured[0] / peer[0]
    error = quotient * hypot(measured[1] / measured[0], peer[1] / peer[0])
    return f"{quotient:.2f} ± {error:.2f}"
