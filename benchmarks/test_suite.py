"""CPU seconds of `make test` relative to those of all tests of an earlier commit.

Both halves of the suite run as the Makefile runs them: the quick tests, then those marked `slow`. `--baseline COMMIT`
runs all tests of an earlier commit. CPU seconds are those of pytest, its workers and the processes that the tests
start. They depend little on what else the machine does.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, write_json
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import machine

BEGIN = "<!-- made by `python -m benchmarks test_suite_tables` -->"
NAME = "test_suite"
HALVES = {"make test": "not slow", "make test-slow": "slow"}
"""The marker expression of each target of the Makefile."""
UPPER_BOUND = 0.4
"""`make test` may take this fraction of the CPU seconds of all tests of the baseline."""


def main(argv: Sequence[str]) -> None:
    """Run the tests, write benchmarks/results/test_suite.json and the table in CONTRIBUTING.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="auto", help="processes that pytest starts")
    parser.add_argument("--only", choices=HALVES, help="run one half and keep the last measurement of the other")
    parser.add_argument("--baseline", metavar="COMMIT", help="run all tests of this commit instead")
    options = parser.parse_args(argv)
    measured = last_measurement()
    if options.baseline:
        measured["baseline"] = {"commit": options.baseline, **run_baseline(options.baseline, options.workers)}
        print(f"written to {write_json(NAME, measured | {'machine': machine()})}")
    else:
        for target in [options.only] if options.only else HALVES:
            measured["halves"][target] = run_tests(HALVES[target], options.workers)
            print(f"written to {write_json(NAME, measured | {'machine': machine()})}")
    write_tables([])


def last_measurement() -> dict[str, Any]:
    """The latest measurement of both halves and of the baseline."""
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {"halves": {}, "baseline": None}


def run_baseline(commit: str, workers: str) -> dict[str, float]:
    """Run all tests of `commit` in a worktree of its own, with the packages of this environment.

    Raises:
        RuntimeError: a test fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "laconic"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", root, commit], cwd=ROOT, check=True)
        try:
            return run_tests("slow or not slow", workers, root)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", root], cwd=ROOT, check=True)


def run_tests(expression: str, workers: str, root: Path = ROOT) -> dict[str, float]:
    """Number of tests, CPU seconds and seconds of the tests below `root` that the marker `expression` selects.

    Raises:
        RuntimeError: a test fails.
    """
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", workers, "--dist", "worksteal", "-m", expression]
    before, start = cpu_seconds_of_children(), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    seconds, cpu_seconds = time.perf_counter() - start, cpu_seconds_of_children() - before
    passed = re.search(r"(\d+) passed", ended.stdout)
    if ended.returncode != 0 or passed is None:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")
    return {"tests": int(passed[1]), "cpu_seconds": cpu_seconds, "seconds": seconds}


def cpu_seconds_of_children() -> float:
    """User and system seconds of the processes that have ended so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def to_table(halves: dict[str, dict[str, float]], baseline: dict[str, Any]) -> str:
    """Both halves and the baseline, and whether `make test` keeps to its bound."""
    whole = baseline["cpu_seconds"]
    share = halves["make test"]["cpu_seconds"] / whole
    verdict = "at most" if share <= UPPER_BOUND else "more than"
    rows = [(f"`{target}`", half) for target, half in halves.items()]
    rows.append((f"all tests at {baseline['commit']}", baseline))
    return "\n".join(
        [
            "| | tests | CPU seconds | fraction |",
            "|---|---:|---:|---:|",
            *(
                f"| {name} | {row['tests']:,} | {row['cpu_seconds']:,.0f} | {row['cpu_seconds'] / whole:.2f} |"
                for name, row in rows
            ),
            "",
            f"`make test` takes {verdict} {UPPER_BOUND} of the CPU seconds of all tests at {baseline['commit']}.",
        ]
    )


def write_tables(argv: Sequence[str]) -> None:
    """Write the last measurement into CONTRIBUTING.md, if both halves and the baseline were measured."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    measured = last_measurement()
    halves, baseline = measured["halves"], measured["baseline"]
    if set(halves) == set(HALVES) and baseline:
        processor = measured["machine"]["processor"]
        replace_between(ROOT / "CONTRIBUTING.md", f"{to_table(halves, baseline)} {processor}.\n", BEGIN)
