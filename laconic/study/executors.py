"""Executors measure the cells of a study in this process or in several; for Ray there is `ray_executor`."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from laconic.progress import Track, silent
from laconic.study.cells import failure, record_header
from laconic.study.ray_executor import RayExecutor, connect
from laconic.study.worker import ATTEMPTS, Worker, WorkItem


class Executor(Protocol):
    """Measures cells. It takes the next cell from the iterator when a worker is free."""

    def run(self, items: Iterable[WorkItem | None]) -> Iterator[dict[str, Any]]:
        """Measure cells, and yield their records in the order in which they finish.

        Args:
            items: the cells. None means that the next cell needs the result of a running one: the executor then waits
                for the next record before it takes another cell, and stops if none is running.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """Measures one cell after another in this process.

    Args:
        folder: the local folder of the study; None if the study is at a URL.
        device: the device on which models run.
        track: reports progress.
    """

    folder: Path | None
    device: str = "cpu"
    track: Track = silent

    @cached_property
    def _worker(self) -> Worker:
        """The worker, which keeps the loaded model between runs."""
        return Worker(self.folder, self.device, track=self.track)

    def run(self, items: Iterable[WorkItem | None]) -> Iterator[dict[str, Any]]:
        """Measure cells one after another, and yield their records in the order given."""
        for item in items:
            if item is None:
                return
            yield self._worker.measure(item)


@dataclass
class WorkerProcess:
    """A worker process.

    Args:
        process: the process.
        connection: the pipe to it.
        item: the cell that it is measuring; None while it is idle.
        attempt: the number of workers that have tried this cell, including this one.
    """

    process: SpawnProcess
    connection: Connection
    item: WorkItem | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Processes:
    """Measures cells in several processes, each with an equal share of the CPU cores.

    If a process dies, another one measures its cell again. `concurrent.futures` is not used, because it drops all other
    cells when a process dies.

    Args:
        folder: the local folder of the study; None if the study is at a URL.
        workers: the number of processes.
        device: the device on which models run.
    """

    folder: Path | None
    workers: int
    device: str = "cpu"

    def run(self, items: Iterable[WorkItem | None]) -> Iterator[dict[str, Any]]:
        """Measure cells, and yield their records in the order in which they finish."""
        queue = iter(items)
        workers: list[WorkerProcess] = []
        try:
            while True:
                self._assign_items(workers, queue)
                busy = [worker for worker in workers if worker.item is not None]
                if not busy:
                    return
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    record = self._receive(worker, workers)
                    if record is not None:
                        yield record
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.process.join()

    def _assign_items(self, workers: list[WorkerProcess], queue: Iterator[WorkItem | None]) -> None:
        """Give every idle worker a cell, and start missing workers while there are cells."""
        idle = [worker for worker in workers if worker.item is None]
        while idle or len(workers) < self.workers:
            item = next(queue, None)
            if item is None:
                return
            if not idle:
                idle.append(self._start_worker(workers))
            self._assign(idle.pop(0), item)

    def _assign(self, worker: WorkerProcess, item: WorkItem, attempt: int = 1) -> None:
        worker.item, worker.attempt = item, attempt
        # `_receive` detects a worker that died while idle, because its connection is closed.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(item)

    def _receive(self, worker: WorkerProcess, workers: list[WorkerProcess]) -> dict[str, Any] | None:
        """The record of a worker's cell; None if the worker died and another one has taken over the cell."""
        item = worker.item
        assert item is not None
        try:
            record = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            workers.remove(worker)
            if worker.attempt < ATTEMPTS:
                self._assign(self._start_worker(workers), item, worker.attempt + 1)
                return None
            code = worker.process.exitcode or 0
            end = f"with status {code}"
            if code < 0:
                end = f"by signal {-code} ({signal.Signals(-code).name}; the system kills what takes too much memory)"
            message = f"The worker process ended {ATTEMPTS} times, the last time {end}."
            return record_header(item.cell, self.workers) | failure("WorkerLost", message)
        worker.item = None
        return record

    def _start_worker(self, workers: list[WorkerProcess]) -> WorkerProcess:
        context = get_context("spawn")
        connection, other = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.workers)
        process = context.Process(target=serve, args=(other, self.folder, self.device, self.workers, threads))
        process.start()
        # This process closes its copy of the other end, so that the death of the worker closes the connection.
        other.close()
        workers.append(WorkerProcess(process, connection))
        return workers[-1]


def serve(connection: Connection, folder: Path | None, device: str, workers: int, threads: int) -> None:
    """The main function of a worker process: measure each received cell until the connection is closed.

    `connection` receives cells and sends records. The other arguments are those of `Worker`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    worker = Worker(folder, device, workers, threads)
    while True:
        try:
            connection.send(worker.measure(connection.recv()))
        except (EOFError, BrokenPipeError):
            return


def _exit_with_parent() -> None:
    """End this process when its parent was killed. The next run of the study measures its cell."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def make_executor(
    kind: str, folder: Path | None, workers: int, address: str | None, device: str, track: Track
) -> Executor:
    """The executor of a kind, `local` or `ray`, with the arguments of its class.

    Raises:
        UserError: Ray is not installed, or there is no cluster at `address`.
    """
    if kind == "ray":
        connect(address)
        # Ray hides the GPUs from workers that have not asked for one.
        return RayExecutor(folder, workers, address, gpus=float(device.startswith("cuda")), device=device)
    return InProcess(folder, device, track) if workers == 1 else Processes(folder, workers, device)
