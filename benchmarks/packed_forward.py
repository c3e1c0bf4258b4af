"""Speed of a language model of 116 million weights whose blocks are codes, beside the dense model, on one thread.

A Llama of 12 blocks (768, 3072) with random codes of each number of bits, in groups of 64. It computes prompts, and the
tokens that are generated after a prompt of 128. The models take turns, so that other load on the machine slows all of
them. `--baseline DIR` also measures another checkout of laconic, in a process of its own with its own dense model.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import packed_times
from benchmarks.common import RESULTS, write_json
from benchmarks.packed_times import BITS, NO_PRODUCTS, measure
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import machine

NAME = "packed_forward"
LEAST_PROMPT, MOST_TOKEN_MS = 0.95, 12.3 / 1.5
"""Aims with 4 bits: a prompt is at least so many times as fast as the dense one; a token takes at most so long."""
BEGIN = "<!-- prompts and tokens, made by `python -m benchmarks packed_forward_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Print the times; write benchmarks/results/packed_forward.json and the table in docs/figures/int8.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--baseline", metavar="DIR", help="a checkout to measure too")
    options = parser.parse_args(argv)
    result = {
        "rounds": options.rounds,
        "times": measure(options.rounds, BITS),
        "baseline": measure_baseline(options.baseline, options.rounds) if options.baseline else None,
        "machine": machine(),
    }
    print(describe(result))
    print(f"written to {write_json(NAME, result)}")
    write_tables([])


def measure_baseline(folder: str, rounds: int) -> dict:
    """The times of the checkout in `folder`, and its commit."""
    command = [sys.executable, packed_times.__file__, str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(Path(folder).resolve())}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    commit = ["git", "-C", folder, "rev-parse", "--short", "HEAD"]
    sha = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    return {"commit": sha, "times": json.loads(printed.splitlines()[-1])}


def describe(result: dict) -> str:
    """The times of the dense model, and how many times as fast the others are, with what misses an aim."""
    lines, missed, before = [], [], result["baseline"]
    titles = [f"{bits} bits" for bits in BITS] + ([f"4 bits at {before['commit']}"] if before else [])
    for dtype, tasks in result["times"].items():
        lines += [f"**{dtype}**", "", f"| | dense | {' | '.join(titles)} |", "|---|---:|" + "---:|" * len(titles)]
        for task, times in tasks.items():
            cells = [cell(times, f"{bits} bits", task) for bits in BITS]
            if before:
                cells.append(cell(before["times"][dtype][task], "4 bits", task))
            lines.append(f"| {task} | {times['dense']:.1f} ms | {' | '.join(cells)} |")
            ratio, token = times["dense"] / times["4 bits"], times["4 bits"]
            if task == "one token" and token > MOST_TOKEN_MS:
                floor = times.get(NO_PRODUCTS)
                without = "" if floor is None else f" ({floor:.1f} ms without any product of a block)"
                missed.append(f"{dtype}, {task}: {token:.1f} ms, above {MOST_TOKEN_MS:.1f} ms{without}.")
            if task != "one token" and ratio < LEAST_PROMPT:
                missed.append(f"{dtype}, {task}: {ratio:.2f}×, below {LEAST_PROMPT}×.")
        lines.append("")
    made = result["machine"]
    lines.append(f"{made['processor']}, {made['instructions']}, one thread, torch {made['torch']}; CPU time, medians.")
    return "\n".join([*lines, *(["", "Aims that 4 bits miss: " + " ".join(missed)] if missed else [])])


def cell(times: dict[str, float], name: str, task: str) -> str:
    """The speed of a model relative to the dense one, as text; empty if it was not measured."""
    if name not in times:
        return ""
    milliseconds = f" ({times[name]:.1f} ms)" if task == "one token" else ""
    return f"{times['dense'] / times[name]:.2f}×{milliseconds}"


def write_tables(argv: Sequence[str]) -> None:
    """Write the latest measurement into docs/figures/int8.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    path = RESULTS / f"{NAME}.json"
    if path.exists():
        replace_between(ROOT / "docs/figures/int8.md", f"{describe(json.loads(path.read_text()))}\n", BEGIN)
