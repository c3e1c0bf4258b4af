"""A sweep: laconic's operations on more than a hundred classes of transformers, as tiny models with random weights.

For each class and operation it prints `works`, or `refused` with the sentence. Any other exception, a reload with other
tensors, or a changed model that computes another function than it should is a failure, with exit status 1.

A finished class is a line of benchmarks/results/architectures.jsonl. An interrupted run continues; `--again` starts
anew, and `--only` measures some classes again. The tables in docs/architectures.md are made of these lines.
"""

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from benchmarks.architectures.cells import FAILED, OPERATIONS
from benchmarks.architectures.classes import ModelClass, model_classes
from benchmarks.architectures.page import page, shorten, summary
from benchmarks.architectures.processes import Results, run_classes
from benchmarks.common import RESULTS
from benchmarks.tables import ROOT, replace_between
from laconic.cli.terminal import progress_bars, silence_libraries
from laconic.errors import Notice

BEGIN = "<!-- made by `python -m benchmarks architectures` -->"
PATH = RESULTS / "architectures.jsonl"
PAGE = ROOT / "docs" / "architectures.md"


def main(argv: Sequence[str]) -> None:
    """Run the sweep, print each cell, and write the page; exit with status 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="classes to run again, such as 'Bert*'")
    parser.add_argument(
        "--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), help="with --only: some of the columns"
    )
    parser.add_argument("--again", action="store_true", help="run every class, also those that have a line")
    parser.add_argument("--workers", type=int, default=2, help="the number of processes")
    options = parser.parse_args(argv)
    silence_libraries()
    warnings.simplefilter("ignore", Notice)
    lines = {} if options.again else read_lines()
    classes = list(model_classes())
    chosen = choose(classes, options.only, lines)
    start = time.perf_counter()
    with progress_bars() as track:
        finished = run_classes(chosen, options.operations, options.workers)
        for _, (model_class, results) in zip(track(chosen, "Sweeping"), finished, strict=True):
            previous = lines.get(model_class.label, {"cells": {}})["cells"]
            print_results(model_class, results)
            cells = {name: {**cell, "sentence": shorten(cell["sentence"])} for name, cell in results.items()}
            lines[model_class.label] = {"class": model_class.label, "cells": previous | cells}
            write_lines(lines, classes)
    print(f"{summary(lines.values()).strip()} {len(chosen)} were run in {time.perf_counter() - start:.0f} s.")
    write_page(lines, classes)
    if any(cell["state"] == FAILED for line in lines.values() for cell in line["cells"].values()):
        raise SystemExit(1)


def choose(classes: Sequence[ModelClass], globs: Sequence[str] | None, lines: Mapping[str, Any]) -> list[ModelClass]:
    """The classes that the globs name; without globs, those without a line."""
    if globs is None:
        return [model_class for model_class in classes if model_class.label not in lines]
    return [model_class for model_class in classes if any(fnmatchcase(model_class.label, glob) for glob in globs)]


def print_results(model_class: ModelClass, results: Results) -> None:
    """Print one line for each cell."""
    for name, cell in results.items():
        share = "" if cell["share"] is None else f" {cell['share']:.0%}"
        sentence = f": {cell['sentence']}" if cell["sentence"] else ""
        print(f"{model_class.label} × {name}: {cell['state']}{share}{sentence}", flush=True)


def read_lines() -> dict[str, Any]:
    """The finished classes by their label."""
    if not PATH.exists():
        return {}
    lines = map(json.loads, PATH.read_text().splitlines())
    return {line["class"]: line for line in lines}


def write_lines(lines: Mapping[str, Any], classes: Sequence[ModelClass]) -> None:
    """Write the finished classes, in the order of the tables."""
    RESULTS.mkdir(exist_ok=True)
    labels = [model_class.label for model_class in classes if model_class.label in lines]
    PATH.write_text("".join(f"{json.dumps(lines[label])}\n" for label in labels))


def write_page(lines: Mapping[str, Any], classes: Sequence[ModelClass]) -> None:
    """Write the tables into docs/architectures.md."""
    replace_between(PAGE, page(lines, classes), BEGIN)


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished classes into docs/architectures.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    write_page(read_lines(), list(model_classes()))
