"""CPU seconds and memory of solving one matrix, beside an earlier commit.

Each case runs in a process of its own with one thread (`benchmarks/solving_case.py`). The shapes are those of
Qwen2.5-Coder-0.5B. Seconds are user CPU seconds, which depend little on what else the machine does. Memory is the peak
of the resident set above the imports, statistics included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, write_json
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import machine

BEGIN = "<!-- made by `python -m benchmarks solving_tables` -->"
NAME = "solving"
SHAPES = ((896, 896), (4864, 896), (896, 4864))
METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"gptq": {"bits": 4, "group_size": 64}},
    "yaqa": {"yaqa": {"bits": 4, "group_size": 64}},
    "awq": {"awq": {"bits": 4, "group_size": 64}},
    "kfac-svd": {"kfac-svd": {"rank_ratio": 0.5}},
    "kfac-prune": {"kfac-prune": {"sparsity": 0.5}},
    "sparsegpt": {"sparsegpt": {"sparsity": 0.5}},
}
PHASES = ("gram", "factors", "search", "sweep", "refit")


def main(argv: Sequence[str]) -> None:
    """Write benchmarks/results/solving.json and docs/figures/solving.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--baseline", metavar="COMMIT", help="measure this commit, and keep the results of the present")
    options = parser.parse_args(argv)
    result = last_measurement() | {"machine": machine()}
    version = "before" if options.baseline else "now"
    if options.baseline:
        result["baseline"] = options.baseline
    with source(options.baseline) as root:
        for name in options.only:
            for rows, columns in SHAPES:
                measured = run(root, name, rows, columns)
                print(version, name, rows, columns, json.dumps(measured), flush=True)
                result["cases"].setdefault(f"{name} {rows} {columns}", {})[version] = measured
                write_json(NAME, result)
    write_tables([])


def last_measurement() -> dict[str, Any]:
    """The latest results."""
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {"cases": {}}


@contextmanager
def source(commit: str | None) -> Iterator[Path]:
    """The folder of laconic at `commit`, in a worktree of its own; the present one for None."""
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "laconic"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", root, commit], cwd=ROOT, check=True)
        try:
            yield root
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", root], cwd=ROOT, check=True)


def run(root: Path, name: str, rows: int, columns: int) -> dict[str, Any]:
    """Seconds, megabytes and loss of one case with the laconic below `root`."""
    command = [sys.executable, ROOT / "benchmarks/solving_case.py", json.dumps(METHODS[name]), str(rows), str(columns)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(ended.stdout)


def write_tables(argv: Sequence[str]) -> None:
    """Write the latest measurement into docs/figures/solving.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    result = last_measurement()
    if result["cases"]:
        text = f"{to_table(result['cases'])}\n\nBefore: {result.get('baseline')}. {result['machine']['processor']}.\n"
        replace_between(ROOT / "docs/figures/solving.md", text, BEGIN)


def to_table(cases: dict[str, dict[str, Any]]) -> str:
    """One line for each case, as `before → now`."""
    lines = [
        f"| method | out × in | {' | '.join(PHASES)} | all seconds | MB | × matrix | relative loss |",
        f"|---|---|{'---:|' * (len(PHASES) + 4)}",
    ]
    for case, measured in cases.items():
        name, rows, columns = case.split()
        versions = [measured[version] for version in ("before", "now") if version in measured]
        seconds = [version["seconds"] for version in versions]
        peaks = [version["megabytes"]["peak"] for version in versions]
        matrix = int(rows) * int(columns) * 4 / 1e6
        numbers = [
            *(_arrow([f"{taken[phase]:.2f}" for taken in seconds]) for phase in PHASES),
            _arrow([f"{taken['gram'] + taken['solving']:.2f}" for taken in seconds]),
            _arrow([f"{peak:.0f}" for peak in peaks]),
            _arrow([f"{peak / matrix:.0f}" for peak in peaks]),
            _arrow([f"{version['loss']:.6f}" for version in versions]),
        ]
        lines.append(f"| {name} | {rows} × {columns} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _arrow(numbers: Sequence[str]) -> str:
    """`before → now`; a single number if both are equal, nothing for phases that a method does not have."""
    if all(float(number) == 0 for number in numbers):
        return ""
    return numbers[0] if len(set(numbers)) == 1 else " → ".join(numbers)
