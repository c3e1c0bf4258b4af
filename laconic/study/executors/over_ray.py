"""Cells on a Ray cluster: one actor a worker, with its cores; a lost one is started again, and so is its cell."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from laconic.errors import UserError, install, reason_of
from laconic.study.executors.base import ATTEMPTS
from laconic.study.records import blank, failed
from laconic.study.worker import Task, Worker

TOLD = ("LACONIC_", "HF_")
LOCAL: dict[str, Any] = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
"""A cluster that is started for a study: its workers are the work, and wait for nothing else on the machine."""


@dataclass(frozen=True)
class OverRay:
    """`workers` actors on the cluster at `address`; a local one is started where that is None.

    place:   the study's folder, where it is one that every machine of the cluster sees under this name.
    threads: cores of each worker, an even part of this machine's where it is None.
    gpus:    of each worker.

    Raises:
        UserError: Ray is not installed, or there is no cluster at `address`.
    """

    place: Path | None
    workers: int
    address: str | None = None
    threads: int | None = None
    gpus: float = 0
    device: str = "cpu"

    def run(self, tasks: Iterable[Task | None]) -> Iterator[dict[str, Any]]:
        """The record of every task, as they are done."""
        ray = connected(self.address)
        queue = iter(tasks)
        idle: list[Any] = []
        running: dict[Any, tuple[Any, Task]] = {}
        try:
            while True:
                # Workers come with the tasks: where another runner has them all, none is started.
                while len(running) < self.workers and (task := next(queue, None)) is not None:
                    actor = idle.pop() if idle else self._actor(ray)
                    running[actor.measure.remote(task)] = (actor, task)
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                actor, task = running.pop(done[0])
                try:
                    record = ray.get(done[0])
                except ray.exceptions.RayError as error:
                    record = blank(task.cell, self.workers) | failed("WorkerLost", reason_of(error))
                    ray.kill(actor)
                else:
                    idle.append(actor)
                yield record
        finally:
            for actor in (*idle, *(actor for actor, _ in running.values())):
                ray.kill(actor)

    def _actor(self, ray: Any) -> Any:
        threads = self.threads or max(1, torch.get_num_threads() // self.workers)
        retries = ATTEMPTS - 1
        # Where data, models and the cache lie is said to this process alone.
        told = {name: value for name, value in os.environ.items() if name.startswith(TOLD)}
        made = ray.remote(
            num_cpus=threads,
            num_gpus=self.gpus,
            max_restarts=retries,
            max_task_retries=retries,
            runtime_env={"env_vars": told},
        )(RemoteBench)
        return made.remote(self.place, self.device, self.workers, threads)


class RemoteBench:
    """A bench in a process of its own, on any machine."""

    def __init__(self, place: Path | None, device: str, workers: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._bench = Worker(place, device, workers)

    def measure(self, task: Task) -> dict[str, Any]:
        """The record of a cell."""
        return self._bench.measure(task)


def connected(address: str | None) -> Any:
    """The module `ray`, once this process belongs to a cluster.

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
            what = f"There is no Ray cluster at '{address}'" if address else "Ray cannot be started here"
            raise UserError(f"{what}: {reason_of(error)}.") from error
    return ray
