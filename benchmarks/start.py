"""Start-up time of commands that need no model and of `import laconic`, relative to `import torch`.

Every command runs in a process of its own. In each round all of them run once, one after another, so that a load on the
machine affects all equally. A time is the median of the rounds, and a ratio is that of two medians.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from benchmarks.common import RESULTS, write_json
from benchmarks.tables import ROOT, replace_between
from laconic.formats.autotune import machine

BEGIN = "<!-- made by `python -m benchmarks start_tables` -->"
NAME = "start"
TORCH, BOTH = "import torch", "import transformers, torch"
ANSWERS = (
    "--help", "--version", "methods", "methods gptq", "compress --help", "run --help", "evaluate --help",
    "export --help", "inspect --help", "study --help", "report --help", "demo --help", "methods --help",
)  # fmt: skip
MISTAKES = (
    "comprss", "compress MODEL --method svd", "compress MODEL --method gtpq -o OUT",
    "compress MODEL --method svd --keep 2 -o OUT", "evaluate MODEL --limit 0", "run nowhere.yaml -o OUT",
)  # fmt: skip
LIBRARY = "import laconic"
OF_TORCH, OF_BOTH = 0.5, 1.3
"""Upper bounds: the time of a command relative to TORCH, and that of `import laconic` relative to BOTH."""


def main(argv: Sequence[str]) -> None:
    """Print the results; write benchmarks/results/start.json and docs/figures/startup.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    result = {"rounds": options.rounds, "seconds": measured(options.rounds), "machine": machine()}
    print(describe(result["seconds"]))
    print(f"written to {write_json(NAME, result)}")
    write_tables([])


def measured(rounds: int) -> dict[str, float]:
    """Seconds of each command: the median of `rounds`, after one round that fills the caches of the system."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        for name, (command, status) in commands().items():
            seconds.setdefault(name, []).append(timed(command, status))
    return {name: median(taken[1:]) for name, taken in seconds.items()}


def commands() -> dict[str, tuple[list[str], int]]:
    """The commands to run by name, each with its expected exit status."""
    python = {name: ([sys.executable, "-c", name], 0) for name in (TORCH, BOTH, LIBRARY)}
    program = [sys.executable, "-m", "laconic"]
    answers = {f"laconic {line}": ([*program, *line.split()], 0) for line in ANSWERS}
    return python | answers | {f"laconic {line}": ([*program, *line.split()], 2) for line in MISTAKES}


def timed(command: Sequence[str], status: int) -> float:
    """Seconds that a process takes to end with `status`."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    start = time.perf_counter()
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False)
    taken = time.perf_counter() - start
    if ended.returncode != status:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr.decode()}")
    return taken


def describe(seconds: dict[str, float]) -> str:
    """The table of the commands, relative to `import torch`."""
    lines = [
        f"| command | seconds | of `{TORCH}` ({seconds[TORCH]:.2f} s) |",
        "|---|---:|---:|",
        *(
            f"| `{name}` | {taken:.2f} | {taken / seconds[TORCH]:.2f} |"
            for name, taken in seconds.items()
            if name.startswith("laconic ")
        ),
        "",
        f"`{LIBRARY}` takes {seconds[LIBRARY]:.2f} s, {seconds[LIBRARY] / seconds[BOTH]:.2f} of `{BOTH}` "
        f"({seconds[BOTH]:.2f} s). {' '.join(missed(seconds))}",
    ]
    return "\n".join(lines).rstrip()


def missed(seconds: dict[str, float]) -> list[str]:
    """A sentence for each command that takes longer than its bound."""
    bounds = {name: (TORCH, OF_TORCH) for name in seconds if name.startswith("laconic ")} | {LIBRARY: (BOTH, OF_BOTH)}
    return [
        f"`{name}` takes more than {share} of `{beside}`."
        for name, (beside, share) in bounds.items()
        if seconds[name] > share * seconds[beside]
    ]


def write_tables(argv: Sequence[str]) -> None:
    """Write the latest measurement into docs/figures/startup.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    path = RESULTS / f"{NAME}.json"
    if path.exists():
        result = json.loads(path.read_text())
        where = f"Medians of {result['rounds']} rounds, {result['machine']['processor']}."
        replace_between(ROOT / "docs/figures/startup.md", f"{describe(result['seconds'])} {where}\n", BEGIN)
