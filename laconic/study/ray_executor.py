"""Cells on a Ray cluster: each worker is an actor with its own cores; Ray restarts a lost one and its cell."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from laconic.errors import UserError, install, reason_of
from laconic.study.cells import failure, record_header
from laconic.study.executors import ATTEMPTS
from laconic.study.worker import Job, Worker

PASSED_VARIABLES = ("LACONIC_", "HF_")
"""Beginnings of environment variables that name data, models and caches; workers get those of this process."""
LOCAL: dict[str, Any] = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
"""Settings of a cluster that is started for a study. By default Ray gives its workers a lower priority."""


@dataclass(frozen=True)
class RayExecutor:
    """Measures cells in actors on a Ray cluster.

    Args:
        folder: the study's folder, if every machine of the cluster has it under this path; else None.
        workers: how many actors.
        address: of the cluster; None starts one on this machine.
        threads: cores of each worker; None for an equal share of this machine's.
        gpus: GPUs of each worker. Ray hides GPUs from workers that ask for none.
        device: where models run.
    """

    folder: Path | None
    workers: int
    address: str | None = None
    threads: int | None = None
    gpus: float = 0
    device: str = "cpu"

    def run(self, jobs: Iterable[Job | None]) -> Iterator[dict[str, Any]]:
        """The records of all jobs, in the order in which they are finished.

        Raises:
            UserError: Ray is not installed, or there is no cluster at `address`.
        """
        ray = connect(self.address)
        queue = iter(jobs)
        idle: list[Any] = []
        running: dict[Any, tuple[Any, Job]] = {}
        try:
            while True:
                # Actors are started for jobs: where other runners hold all cells, there are none.
                while len(running) < self.workers and (job := next(queue, None)) is not None:
                    actor = idle.pop() if idle else self._start_actor(ray)
                    running[actor.measure.remote(job)] = (actor, job)
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                actor, job = running.pop(done[0])
                try:
                    record = ray.get(done[0])
                except ray.exceptions.RayError as error:
                    record = record_header(job.cell, self.workers) | failure("WorkerLost", reason_of(error))
                    ray.kill(actor)
                else:
                    idle.append(actor)
                yield record
        finally:
            for actor in (*idle, *(actor for actor, _ in running.values())):
                ray.kill(actor)

    def _start_actor(self, ray: Any) -> Any:
        threads = self.threads or max(1, torch.get_num_threads() // self.workers)
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_VARIABLES)}
        actor = ray.remote(
            num_cpus=threads,
            num_gpus=self.gpus,
            max_restarts=ATTEMPTS - 1,
            max_task_retries=ATTEMPTS - 1,
            runtime_env={"env_vars": variables},
        )(Worker)
        return actor.remote(self.folder, self.device, self.workers, threads)


def connect(address: str | None) -> Any:
    """The module `ray`, after connecting this process to a cluster.

    Args:
        address: of the cluster; None starts one on this machine.

    Raises:
        UserError: Ray is not installed, or there is no cluster at `address`.
    """
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise UserError(f"The executor 'ray' is not installed: {install('ray')}.") from error
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, **({} if address else LOCAL))
        except (ConnectionError, RuntimeError, ValueError) as error:
            problem = f"There is no Ray cluster at '{address}'" if address else "Ray cannot be started here"
            raise UserError(f"{problem}: {reason_of(error)}.") from error
    return ray
