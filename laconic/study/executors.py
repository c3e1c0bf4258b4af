"""Executors measure the cells of a study in this process, or in several processes on this machine."""

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
from laconic.study.worker import Job, Worker

ATTEMPTS = 3
"""The number of worker processes that may die on the same cell before the cell counts as failed."""


class Executor(Protocol):
    """Measures jobs. It takes the next job from the iterator when a worker is free."""

    def run(self, jobs: Iterable[Job | None]) -> Iterator[dict[str, Any]]:
        """Measure jobs, and yield their records in the order in which they finish.

        Args:
            jobs: the jobs. None means that the next job needs the result of a running one: the executor then waits for
                the next record before it takes another item, and stops if no job is running.
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

    def run(self, jobs: Iterable[Job | None]) -> Iterator[dict[str, Any]]:
        """Measure jobs one after another, and yield their records in the order of the jobs."""
        for job in jobs:
            if job is None:
                return
            yield self._worker.measure(job)


@dataclass
class WorkerProcess:
    """A worker process.

    Args:
        process: the process.
        connection: the pipe to it.
        job: the job that it is measuring; None while it is idle.
        attempt: the number of workers that have tried this job, including this one.
    """

    process: SpawnProcess
    connection: Connection
    job: Job | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Processes:
    """Measures cells in several processes, each with an equal share of the CPU cores.

    If a process dies, another one measures its cell again. `concurrent.futures` is not used, because it drops all other
    jobs when a process dies.

    Args:
        folder: the local folder of the study; None if the study is at a URL.
        workers: the number of processes.
        device: the device on which models run.
    """

    folder: Path | None
    workers: int
    device: str = "cpu"

    def run(self, jobs: Iterable[Job | None]) -> Iterator[dict[str, Any]]:
        """Measure jobs, and yield their records in the order in which they finish."""
        queue = iter(jobs)
        workers: list[WorkerProcess] = []
        try:
            while True:
                self._assign_jobs(workers, queue)
                busy = [worker for worker in workers if worker.job is not None]
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

    def _assign_jobs(self, workers: list[WorkerProcess], queue: Iterator[Job | None]) -> None:
        """Give every idle worker a job, and start missing workers while there are jobs."""
        idle = [worker for worker in workers if worker.job is None]
        while idle or len(workers) < self.workers:
            job = next(queue, None)
            if job is None:
                return
            if not idle:
                idle.append(self._start_worker())
                workers.append(idle[0])
            self._assign(idle.pop(0), job)

    def _assign(self, worker: WorkerProcess, job: Job, attempt: int = 1) -> None:
        worker.job, worker.attempt = job, attempt
        # `_receive` detects a worker that died while idle, because its connection is closed.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(job)

    def _receive(self, worker: WorkerProcess, workers: list[WorkerProcess]) -> dict[str, Any] | None:
        """The record of a worker's job; None if the worker died and another one has taken over the job."""
        job = worker.job
        assert job is not None
        try:
            record = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            workers.remove(worker)
            if worker.attempt < ATTEMPTS:
                successor = self._start_worker()
                workers.append(successor)
                self._assign(successor, job, worker.attempt + 1)
                return None
            message = f"The worker was lost {ATTEMPTS} times, at last {_describe_exit(worker.process.exitcode)}."
            return record_header(job.cell, self.workers) | failure("WorkerLost", message)
        worker.job = None
        return record

    def _start_worker(self) -> WorkerProcess:
        context = get_context("spawn")
        connection, other = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.workers)
        process = context.Process(target=serve, args=(other, self.folder, self.device, self.workers, threads))
        process.start()
        # This process closes its copy of the other end, so that the death of the worker closes the connection.
        other.close()
        return WorkerProcess(process, connection)


def serve(connection: Connection, folder: Path | None, device: str, workers: int, threads: int) -> None:
    """The main function of a worker process: measure each received job until the connection is closed.

    Args:
        connection: receives jobs and sends records.
        folder: the local folder of the study; None if the study is at a URL.
        device: the device on which models run.
        workers: the number of worker processes; records contain it.
        threads: the number of CPU threads for torch.
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


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by signal {-code} ({signal.Signals(-code).name}; the system kills what takes too much memory)"
    return f"with status {code}"
