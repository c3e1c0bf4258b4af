"""Measure the cells of a study on a Ray cluster.

A worker for cells of large models asks Ray for the memory that they need (`laconic.study.memory`). So Ray places it on
a machine that has so much left, or waits until one has.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from laconic.errors import UserError, install, reason_of
from laconic.recipe.estimate.units import format_bytes
from laconic.study.cells import failure, record_header
from laconic.study.memory import MemoryNeeds
from laconic.study.worker import ATTEMPTS, Worker, WorkItem

PASSED_VARIABLES = ("LACONIC_", "HF_")
"""Prefixes of the environment variables that Ray copies to workers: paths of data, models and caches."""
LOCAL: dict[str, Any] = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
"""Settings of a Ray cluster that is started for a study. By default Ray would run workers at a lower priority."""


@dataclass(frozen=True)
class Actor:
    """A worker on a Ray cluster.

    Args:
        handle: the actor.
        memory: the bytes of memory that it has asked for; 0 if it has asked for none.
    """

    handle: Any
    memory: int


@dataclass(frozen=True)
class RayExecutor:
    """Measures cells on a Ray cluster. Each worker is an actor with its own cores; Ray restarts actors that die.

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

    def run(self, items: Iterable[WorkItem | None]) -> Iterator[dict[str, Any]]:
        """Measure cells, and yield their records in the order in which they finish.

        Raises:
            UserError: Ray is not installed, or there is no cluster at `address`.
        """
        ray = connect(self.address)
        queue, needs = iter(items), MemoryNeeds()
        idle: list[Actor] = []
        running: dict[Any, tuple[Actor, WorkItem]] = {}
        try:
            while True:
                # An actor is started only when there is a cell: other runners may hold all cells.
                while len(running) < self.workers and (item := next(queue, None)) is not None:
                    memory, most = needs.of(item.cell), largest_memory(ray)
                    if memory > most:
                        yield record_header(item.cell, self.workers) | _too_large(memory, most)
                        continue
                    actor = self._take_actor(ray, idle, memory)
                    running[actor.handle.measure.remote(item)] = (actor, item)
                if not running:
                    return
                # A worker may wait for the memory of those that have no cell any more.
                _kill(ray, [actor for actor in idle if actor.memory])
                idle = [actor for actor in idle if not actor.memory]
                done, _ = ray.wait(list(running), num_returns=1)
                actor, item = running.pop(done[0])
                try:
                    record = ray.get(done[0])
                except ray.exceptions.RayError as error:
                    record = record_header(item.cell, self.workers) | failure("WorkerLost", reason_of(error))
                    _kill(ray, [actor])
                else:
                    idle.append(actor)
                yield record
        finally:
            _kill(ray, [*idle, *(actor for actor, _ in running.values())])

    def _take_actor(self, ray: Any, idle: list[Actor], memory: int) -> Actor:
        """A worker with enough memory: one that is idle, or a new one in its place."""
        found = next((actor for actor in idle if actor.memory >= memory), None)
        if found is None:
            _kill(ray, idle[:1])
            del idle[:1]
            return Actor(self._start_actor(ray, memory), memory)
        idle.remove(found)
        return found

    def _start_actor(self, ray: Any, memory: int = 0) -> Any:
        threads = self.threads or max(1, torch.get_num_threads() // self.workers)
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_VARIABLES)}
        actor = ray.remote(
            num_cpus=threads,
            num_gpus=self.gpus,
            memory=memory or None,
            max_restarts=ATTEMPTS - 1,
            max_task_retries=ATTEMPTS - 1,
            runtime_env={"env_vars": variables},
        )(Worker)
        return actor.remote(self.folder, self.device, self.workers, threads)


def largest_memory(ray: Any) -> int:
    """The bytes of memory that the largest machine of the cluster gives to its workers."""
    return max((int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=0)


def _too_large(memory: int, most: int) -> dict[str, Any]:
    sentence = (
        f"The cell needs about {format_bytes(memory)} of memory, and the largest machine of the Ray cluster gives "
        f"{format_bytes(most)}; use stream: true, or a smaller batch_size."
    )
    return failure("UserError", sentence)


def _kill(ray: Any, actors: Iterable[Actor]) -> None:
    for actor in actors:
        ray.kill(actor.handle)


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
