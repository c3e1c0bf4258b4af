"""Measure cells on a Ray cluster. Each worker is an actor with its own cores; Ray restarts actors that die."""

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
"""Prefixes of the environment variables that are copied to workers: paths of data, models and caches."""
LOCAL: dict[str, Any] = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
"""Settings of a cluster that is started for a study. By default Ray would run workers at a lower priority."""


@dataclass(frozen=True)
class RayExecutor:
    """Measures cells in actors on a Ray cluster.

    Args:
        folder: the folder of the study, if all machines of the cluster have it at this path; else None.
        workers: the number of actors.
        address: the address of the cluster; None starts a cluster on this machine.
        threads: CPU cores of each worker; None for an equal share of the cores of this machine.
        gpus: GPUs of each worker, possibly a fraction. Ray hides all GPUs from a worker with 0.
        device: the device on which models run.
    """

    folder: Path | None
    workers: int
    address: str | None = None
    threads: int | None = None
    gpus: float = 0
    device: str = "cpu"

    def run(self, jobs: Iterable[Job | None]) -> Iterator[dict[str, Any]]:
        """Measure jobs, and yield their records in the order in which they finish.

        Raises:
            UserError: Ray is not installed, or there is no cluster at `address`.
        """
        ray = connect(self.address)
        queue = iter(jobs)
        idle: list[Any] = []
        running: dict[Any, tuple[Any, Job]] = {}
        try:
            while True:
                # An actor is started only when there is a job: other runners may hold all cells.
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
    """Connect this process to a Ray cluster, and return the module `ray`.

    Args:
        address: the address of the cluster; None starts a cluster on this machine.

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
