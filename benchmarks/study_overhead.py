"""Overhead of a study of 200 cells: starting, checking, leasing, writing records, and the report.

The cells are as small as possible, on a model of 260 thousand numbers, so that the overhead is visible. Each record has
the time of its cell, and the part of it that was compression and evaluation. The program runs in a process of its own,
in a new folder and with an empty cache. It then runs again, with nothing left to do.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import yaml

from benchmarks.common import RESULTS, models_folder, write_json
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import machine
from laconic.report.study import write_report
from laconic.study import Ledger

BEGIN = "<!-- made by `python -m benchmarks study_overhead_tables` -->"
NAME, MODEL, SOURCE = "study_overhead", "stories260K", "builtin:pydoc"
METHODS, SEEDS = ("svd", "drone", "magnitude", "wanda"), (0, 1, 2, 3, 4)
KEEPS = (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45)
LITTLE = 0.02
"""An acceptable share of a study's time."""


def main(argv: Sequence[str]) -> None:
    """Print the results; write benchmarks/results/study_overhead.json and docs/studies.md."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    with TemporaryDirectory() as folder:
        result = measured(Path(folder))
    print(describe(result))
    print(f"written to {write_json(NAME, {**result, 'machine': machine()})}")
    write_tables([])


def measured(folder: Path) -> dict[str, float]:
    """Seconds of the program and of its parts, summed over all cells."""
    study = {
        "axes": {"model": [str(models_folder() / MODEL)], "method": METHODS, "keep": KEEPS, "seed": SEEDS},
        "data": SOURCE, "samples": 4, "max_length": 32, "tasks": [f"perplexity:{SOURCE}"], "limit": 2,
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(study))))
    wall, said = run(folder)
    idle, _ = run(folder)
    start = time.perf_counter()
    records = Ledger(str(folder / "study")).all()[0]
    write_report(records, folder / "again", NAME)
    report = time.perf_counter() - start
    own = sum(record["seconds"].get("compress", 0) + record["seconds"].get("evaluate", 0) for record in records)
    between = said["seconds"] - said["seconds_within_cells"]
    outside = wall - said["seconds_within_cells"]
    return {
        "cells": said["measured"],
        "seconds": wall,
        "within": said["seconds_within_cells"],
        "own": own,
        "outside": outside,
        "between": between,
        "report": report,
        "start": outside - between - report,
        "again": idle,
        "cell": mean(record["seconds"]["total"] for record in records),
    }


def run(folder: Path) -> tuple[float, dict]:
    """Run the program; return its seconds and its JSON."""
    command = [sys.executable, "-m", "laconic", "study", "study.yaml", "-o", "study", "--json"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "LACONIC_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, json.loads(done.stdout)


def describe(result: dict) -> str:
    """The table, and a sentence on studies with larger cells."""
    cells, outside = int(result["cells"]), result["outside"]
    beside = result["within"] - result["own"]
    lines = {
        "starting, and checking every cell": result["start"],
        f"between two cells: leases and records, {1e3 * result['between'] / cells:.1f} ms each": result["between"],
        "the report": result["report"],
        f"**outside of the cells, {1e3 * outside / cells:.0f} ms each**": outside,
        f"within the cells, beside compression and evaluation: saving, {1e3 * beside / cells:.0f} ms each": beside,
        "the same command with nothing left to do": result["again"],
    }
    return "\n".join(
        [
            f"| a study of {cells} cells | seconds |",
            "|---|---:|",
            *(f"| {what} | {seconds:.1f} |" for what, seconds in lines.items()),
            "",
            f"What is outside of the cells is {LITTLE:.0%} of a study whose cells take "
            f"{outside / cells / LITTLE:.1f} s each, and less of a longer one.",
        ]
    )


def write_tables(argv: Sequence[str]) -> None:
    """Write the latest measurement into docs/studies.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    path = RESULTS / f"{NAME}.json"
    if path.exists():
        result = json.loads(path.read_text())
        where = f"{result['machine']['processor']}, torch's threads: {result['machine']['threads']}."
        replace_between(ROOT / "docs/studies.md", f"{describe(result)} {where}\n", BEGIN)
