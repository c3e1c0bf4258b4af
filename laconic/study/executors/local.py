"""Cells in this process, or in several processes of this machine that share out its cores."""

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
from typing import Any

import torch

from laconic.progress import Track, silent
from laconic.study.executors.base import ATTEMPTS
from laconic.study.records import blank, failed
from laconic.study.worker import Task, Worker


@dataclass(frozen=True)
class InProcess:
    """One cell after the other, here."""

    place: Path | None
    device: str = "cpu"
    track: Track = silent

    @cached_property
    def _bench(self) -> Worker:
        """One for all tasks, whenever they come."""
        return Worker(self.place, self.device, track=self.track)

    def run(self, tasks: Iterable[Task | None]) -> Iterator[dict[str, Any]]:
        """The record of every task, in their order."""
        for task in tasks:
            if task is None:
                return
            yield self._bench.measure(task)


@dataclass
class WorkerProcess:
    """A process, the connection to it, and what it is at."""

    process: SpawnProcess
    connection: Connection
    task: Task | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Processes:
    """`workers` processes, each with its part of the cores; a cell whose process dies is measured again in another."""

    place: Path | None
    workers: int
    device: str = "cpu"

    def run(self, tasks: Iterable[Task | None]) -> Iterator[dict[str, Any]]:
        """The record of every task, as they are done."""
        queue = iter(tasks)
        workers: list[WorkerProcess] = []
        try:
            while True:
                self._fill(workers, queue)
                busy = [worker for worker in workers if worker.task is not None]
                if not busy:
                    return
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    record = self._received(worker, workers)
                    if record is not None:
                        yield record
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.process.join()

    def _fill(self, workers: list[WorkerProcess], queue: Iterator[Task | None]) -> None:
        """Give every free worker a task, and start those that are missing while there are tasks."""
        free = [worker for worker in workers if worker.task is None]
        while free or len(workers) < self.workers:
            task = next(queue, None)
            if task is None:
                return
            if not free:
                free.append(self._started())
                workers.append(free[0])
            self._give(free.pop(0), task)

    def _give(self, worker: WorkerProcess, task: Task, attempt: int = 1) -> None:
        worker.task, worker.attempt = task, attempt
        # One that died while it had nothing to do is found like one that died at work: its connection has an end.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send(task)

    def _received(self, worker: WorkerProcess, workers: list[WorkerProcess]) -> dict[str, Any] | None:
        """The record of a worker's task; None where the process was lost, and another is at the task now."""
        task = worker.task
        assert task is not None
        try:
            record = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            workers.remove(worker)
            if worker.attempt < ATTEMPTS:
                another = self._started()
                workers.append(another)
                self._give(another, task, worker.attempt + 1)
                return None
            ended = f"The worker was lost {ATTEMPTS} times, at last {_manner(worker.process.exitcode)}."
            return blank(task.cell, self.workers) | failed("WorkerLost", ended)
        worker.task = None
        return record

    def _started(self) -> WorkerProcess:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.workers)
        process = context.Process(target=serve, args=(theirs, self.place, self.device, self.workers, threads))
        process.start()
        # Once the process has the other end alone, its death is the end of the connection.
        theirs.close()
        return WorkerProcess(process, ours)


def serve(connection: Connection, place: Path | None, device: str, workers: int, threads: int) -> None:
    """What a worker does: measure what it is given, until it is told to end or its runner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    bench = Worker(place, device, workers)
    while True:
        try:
            connection.send(bench.measure(connection.recv()))
        except (EOFError, BrokenPipeError):
            return


def _end_with_parent() -> None:
    """A cell whose runner was killed is nobody's: whoever runs the study next measures it."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _manner(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by signal {-code} ({signal.Signals(-code).name}; the system kills what takes too much memory)"
    return f"with status {code}"
