"""CPU seconds and memory of perplexity and KL of a language model, beside laconic before they came from one pass.

Each way runs in a process of its own with one thread, and counts its CPU seconds, so that other load on the machine
matters little. A finished cell is one line of benchmarks/results/evaluate_large.jsonl; to start again, delete the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import Cells
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import machine

CELLS = Cells("evaluate_large", ("model", "articles", "way"))
BEGIN = "<!-- made by `python -m benchmarks evaluate_large_tables` -->"
SCRIPT = Path(__file__).parent / "peers/evaluate_models.py"
PAGE = ROOT / "docs/figures/evaluation.md"
BEFORE = "before"
WAYS: dict[str, dict[str, Any]] = {
    BEFORE: {},
    "windows as before": {"context": 1024},
    "now": {},
    "now, original kept": {},
    "now, bfloat16": {"dtype": "bfloat16"},
    "now, bfloat16, original kept": {"dtype": "bfloat16"},
    "now, streamed": {"stream": True},
    "now, bfloat16, streamed": {"dtype": "bfloat16", "stream": True},
    "now, bfloat16, streamed, original kept": {"dtype": "bfloat16", "stream": True},
}
"""Every way with its options. A way whose name ends in "original kept" has the states of the original from the way
before it; others start anew."""


def main(argv: Sequence[str]) -> None:
    """Measure every way that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--original", required=True, help="the folder of a causal language model")
    parser.add_argument("--model", required=True, help="the folder of the same model, compressed")
    parser.add_argument("--before", help="a working tree of laconic before; without it, only this one is measured")
    parser.add_argument("--task", default="perplexity:wikitext-2")
    parser.add_argument("--articles", type=int, default=20)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args(argv)
    name = Path(options.model).name
    with tempfile.TemporaryDirectory() as caches:
        for _, articles, way in CELLS.missing([(name, options.articles, way) for way in options.ways]):
            if way == BEFORE and options.before is None:
                continue
            job = {
                "original": os.path.abspath(options.original),
                "model": os.path.abspath(options.model),
                "task": options.task,
                "articles": articles,
                "way": way,
                "options": WAYS[way],
            }
            code = str(options.before if way == BEFORE else ROOT)
            cell = measured(job, code, Path(caches, way.removesuffix(", original kept")))
            CELLS.add((name, articles, way), {**cell, "machine": machine(), "versions": {"torch": version("torch")}})
    print(f"{CELLS}; `python -m benchmarks evaluate_large_tables` makes the table")


def measured(job: dict[str, Any], code: str, cache: Path) -> dict[str, Any]:
    """The cell of one way.

    Args:
        job: the argument of the script.
        code: the working tree of laconic that runs it.
        cache: the folder of the cache.
    """
    environment = {**os.environ, "PYTHONPATH": code, "LACONIC_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(job)], env=environment, check=True, capture_output=True, text=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    settings, fidelity = found["settings"][job["task"]], found["fidelity"]
    perplexity = {
        whose: results[job["task"]]["perplexity"]["value"]
        for whose, results in (("model", found["results"]), ("original", found["original"]["results"]))
    }
    return {
        "seconds": round(found["seconds"], 1),
        "peak_bytes": found["peak_bytes"],
        "perplexity": perplexity,
        "kl": fidelity["kl"],
        "predictions": fidelity["predictions"],
        "tokens": settings["tokens"],
        "context": settings["context"],
        "stride": settings["stride"],
    }


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/evaluation.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    runs = list(dict.fromkeys((cell["model"], cell["articles"]) for cell in CELLS))
    replace_between(PAGE, "\n".join(table(*run) for run in runs), BEGIN)


def table(model: str, articles: int) -> str:
    """One line for each way."""
    cells = {cell["way"]: cell for cell in CELLS.where(model=model, articles=articles)}
    first = next(iter(cells.values()))
    lines = [
        f"**{model}**, {articles} articles of WikiText-2 ({first['tokens']:,d} tokens), one thread, "
        f"{first['machine']['processor']}:",
        "",
        "| | windows | CPU seconds | of before | peak, GB | perplexity | of the original | KL, nats | of tokens |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for way in WAYS:
        if (cell := cells.get(way)) is None:
            continue
        share = f"{cell['seconds'] / cells[BEFORE]['seconds']:.2f}" if BEFORE in cells else ""
        ours, theirs = cell["perplexity"]["model"], cell["perplexity"]["original"]
        lines.append(
            f"| {way} | {cell['context']}, by {cell['stride']} | {cell['seconds']:.0f} | {share} | "
            f"{cell['peak_bytes'] / 1e9:.2f} | {ours:.4f} | {theirs:.4f} | {cell['kl']:.5f} | "
            f"{cell['predictions']:,d} |"
        )
    return "\n".join([*lines, ""])
