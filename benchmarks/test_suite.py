"""CPU seconds of `make test` relative to those of all tests.

Both halves of the suite run as the Makefile runs them: the quick tests, then those marked `slow`. CPU seconds are those
of pytest, its workers and the processes that the tests start. They depend little on what else the machine does.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.common import RESULTS, write_json
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import machine

BEGIN = "<!-- made by `python -m benchmarks test_suite_tables` -->"
NAME = "test_suite"
HALVES = {"make test": "not slow", "make test-slow": "slow"}
"""The marker expression of each target of the Makefile."""
UPPER_BOUND = 0.4
"""`make test` may take this share of the CPU seconds of all tests."""


def main(argv: Sequence[str]) -> None:
    """Run the tests, write benchmarks/results/test_suite.json and the table in CONTRIBUTING.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="auto", help="processes that pytest starts")
    parser.add_argument("--only", choices=HALVES, help="run one half and keep the last measurement of the other")
    options = parser.parse_args(argv)
    halves = last_measurement()
    for target in [options.only] if options.only else HALVES:
        halves[target] = run_tests(HALVES[target], options.workers)
        print(f"written to {write_json(NAME, {'halves': halves, 'machine': machine()})}")
    write_tables([])


def last_measurement() -> dict[str, dict[str, float]]:
    """The latest measurement of both halves; empty before the first."""
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text())["halves"] if path.exists() else {}


def run_tests(expression: str, workers: str) -> dict[str, float]:
    """Number of tests, CPU seconds and seconds of the tests that the marker `expression` selects.

    Raises:
        RuntimeError: a test fails.
    """
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", workers, "--dist", "worksteal", "-m", expression]
    before, start = cpu_seconds_of_children(), time.perf_counter()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds, cpu_seconds = time.perf_counter() - start, cpu_seconds_of_children() - before
    passed = re.search(r"(\d+) passed", ended.stdout)
    if ended.returncode != 0 or passed is None:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")
    return {"tests": int(passed[1]), "cpu_seconds": cpu_seconds, "seconds": seconds}


def cpu_seconds_of_children() -> float:
    """User and system seconds of the processes that have ended so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def to_table(halves: dict[str, dict[str, float]]) -> str:
    """Both halves side by side, and whether `make test` keeps to its bound."""
    total = sum(half["cpu_seconds"] for half in halves.values())
    share = halves["make test"]["cpu_seconds"] / total
    verdict = "at most" if share <= UPPER_BOUND else "more than"
    return "\n".join(
        [
            "| | tests | CPU seconds | of all |",
            "|---|---:|---:|---:|",
            *(
                f"| `{target}` | {half['tests']:,} | {half['cpu_seconds']:,.0f} | {half['cpu_seconds'] / total:.2f} |"
                for target, half in halves.items()
            ),
            "",
            f"`make test` takes {verdict} {UPPER_BOUND} of the CPU seconds of all tests.",
        ]
    )


def write_tables(argv: Sequence[str]) -> None:
    """Write the last measurement into CONTRIBUTING.md, if both halves were measured."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    halves = last_measurement()
    if set(halves) == set(HALVES):
        processor = json.loads((RESULTS / f"{NAME}.json").read_text())["machine"]["processor"]
        replace_between(ROOT / "CONTRIBUTING.md", f"{to_table(halves)} {processor}.\n", BEGIN)
