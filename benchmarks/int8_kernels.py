"""One product on every kernel of int8 and of 4 bits that is right on this machine, beside the dense layer.

Random matrices of the shapes of small and middling models; caches are cold for up to 64 rows. Each finished question is
one line of benchmarks/results/int8_kernels.jsonl, with the machine, so that a run that was stopped goes on where it
was, and another machine begins anew. `python -m benchmarks int8_tables` writes the tables.
"""

import argparse
import json
from collections.abc import Sequence

import torch
from rich.progress import track

from benchmarks.common import RESULTS
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
"""With the machine, what makes a question the same question."""


def main(argv: Sequence[str]) -> None:
    """Measure what is missing."""
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
        if out * width <= options.most_weights and rows <= FAMILIES[family].most_rows
    ]
    for asked in track([asked for asked in questions if key_of(asked) not in done], "products"):
        question = ProductShape(asked["rows"], asked["out"], asked["in"], DTYPES[asked["dtype"]])
        seconds = time_kernels(FAMILIES[asked["family"]], question)
        with PATH.open("a") as file:
            file.write(json.dumps({**asked, "seconds": seconds, "machine": here}) + "\n")


def measured_rows_of(here: dict) -> list[dict]:
    """What was measured on one machine."""
    return [row for row in measured() if row["machine"] == here]


def measured() -> list[dict]:
    """All that was measured, in that order."""
    return [json.loads(line) for line in PATH.read_text().splitlines()] if PATH.exists() else []


def key_of(row: dict) -> tuple:
    return tuple(row[name] for name in SAME)
