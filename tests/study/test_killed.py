"""Studies whose workers or runners are killed at any moment: nothing is lost, nothing is measured twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from laconic.cli.main import status
from laconic.study.executors import Processes
from laconic.study.ledger import CELLS
from laconic.study.shared_folder import scratch_folder
from laconic.study.worker import Worker, WorkItem
from tests.study.forked import process
from tests.study.test_run import cells, done, figures, records


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_is_killed_is_replaced(little_study: dict[str, Any], tmp_path: Path) -> None:
    killed: list[int] = []

    class Murderous(Processes):
        def _assign(self, worker: Any, item: WorkItem, attempt: int = 1) -> None:
            super()._assign(worker, item, attempt)
            if not killed and not item.cell.baseline:
                os.kill(worker.process.pid, signal.SIGKILL)
                killed.append(worker.process.pid)

    summary = done(little_study, tmp_path / "study", Murderous(tmp_path / "study", workers=1))
    assert killed and summary.measured == 9 and not summary.failed


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_cell_that_kills_every_worker_fails_alone(little_study: dict[str, Any], tmp_path: Path) -> None:
    key = cells(little_study)[4].key

    class Murderous(Processes):
        def _assign(self, worker: Any, item: WorkItem, attempt: int = 1) -> None:
            super()._assign(worker, item, attempt)
            if item.cell.key == key:
                os.kill(worker.process.pid, signal.SIGKILL)

    summary = done(little_study, tmp_path / "study", Murderous(tmp_path / "study", workers=1))
    assert summary.measured == 9
    (failed,) = summary.failed
    assert failed["key"] == key and failed["error"]["kind"] == "WorkerLost"
    assert "signal 9 (SIGKILL" in failed["error"]["sentence"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_dies_with_nothing_to_do_is_replaced(little_study: dict[str, Any], tmp_path: Path) -> None:
    killed: list[int] = []

    class Murderous(Processes):
        def _assign(self, worker: Any, item: WorkItem, attempt: int = 1) -> None:
            if not killed:
                worker.process.kill()
                worker.process.join()
                killed.append(worker.process.pid)
            super()._assign(worker, item, attempt)

    little_study["exclude"] = [{"keep": 0.5}, {"seed": 1}]
    summary = done(little_study, tmp_path / "study", Murderous(tmp_path / "study", workers=1))
    assert killed and summary.measured == 3 and not summary.failed


KILLS = int(os.environ.get("LACONIC_KILLS", "2"))
"""Times that a runner is killed; more of them take their time."""


def run_study(study: Path, folder: Path) -> None:
    # As many threads as here: sums of another number of parts have other last digits.
    torch.set_num_threads(1)
    sys.exit(status(["study", str(study), "-o", str(folder)]))


@pytest.mark.slow
def test_a_runner_that_is_killed_leaves_what_an_unbroken_one_does(little_study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(little_study, sort_keys=False))
    arguments = (tmp_path / "study.yaml", tmp_path / "broken")
    random.seed(0)
    order: list[Sequence[str]] = []
    for _ in range(KILLS):
        runner = process(run_study, arguments)
        runner.start()
        before = set(records(tmp_path / "broken")) if (tmp_path / "broken").exists() else set[str]()
        _wait_for_a_cell(runner, tmp_path / "broken", before)
        time.sleep(random.random() * 0.5)
        runner.kill()
        runner.join()
        order.append(sorted(records(tmp_path / "broken")))
    runner = process(run_study, arguments)
    runner.start()
    runner.join()
    assert runner.exitcode == 0
    done(little_study, tmp_path / "whole")
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    # What was there once was never measured again: a record's time is that of the run that made it.
    for earlier, later in pairwise(order):
        assert set(earlier) <= set(later)
    assert not list((tmp_path / "broken" / CELLS).glob("*.lease"))
    assert not list((tmp_path / "broken").glob(".scratch*"))


def _wait_for_a_cell(runner: BaseProcess, place: Path, before: set[str]) -> None:
    """Until a further record is there, or the runner has ended."""
    deadline = time.monotonic() + 120
    while runner.is_alive() and time.monotonic() < deadline:
        if place.exists() and set(records(place)) - before:
            return
        time.sleep(0.05)


def test_models_of_a_worker_that_was_killed_are_cleared_away(tmp_path: Path) -> None:
    leave = f"""
import os
from pathlib import Path
from laconic.study.shared_folder import scratch_folder
with scratch_folder(Path({str(tmp_path)!r})) as folder:
    (folder / "model.safetensors").write_bytes(bytes(9))
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", leave], check=False).returncode == -signal.SIGKILL
    with scratch_folder(tmp_path) as own:
        assert len(list(tmp_path.glob(".scratch*/model.safetensors"))) == 1
        Worker(tmp_path)
        assert list(tmp_path.glob(".scratch*")) == [own]
    assert not list(tmp_path.iterdir())
