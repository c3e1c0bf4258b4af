"""Processes that read what the tests saved, with laconic and without: each is started once and serves many tests."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("fresh.py")
STARTED: dict[bool, subprocess.Popen[str]] = {}
"""The process that has imported laconic and the one that has not, once they were needed."""


def reader(laconic: bool) -> subprocess.Popen[str]:
    """The process that runs fresh.py. It knows nothing of the process that saved but the files."""
    if laconic not in STARTED:
        STARTED[laconic] = subprocess.Popen(
            [sys.executable, str(SCRIPT), *(["laconic"] if laconic else [])],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            cwd=tempfile.gettempdir(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    return STARTED[laconic]


def end_readers() -> None:
    """End the processes that were started."""
    while STARTED:
        STARTED.popitem()[1].communicate()


def in_fresh_process(
    jobs: Sequence[dict[str, object]], tmp_path: Path, laconic: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(what each job computed, the complaint of each that did not load as it should)."""
    jobs_file, outputs_file, complaints_file = (tmp_path / name for name in ("jobs.json", "outputs", "complaints"))
    jobs_file.write_text(json.dumps(jobs))
    process = reader(laconic)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([str(jobs_file), str(outputs_file), str(complaints_file)]) + "\n")
    process.stdin.flush()
    # What the libraries print goes by.
    assert any(line == "done\n" for line in iter(process.stdout.readline, "")), "fresh.py has failed"
    return load_file(outputs_file), json.loads(complaints_file.read_text())
