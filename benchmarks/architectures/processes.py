"""Run the cells of each class in a process of its own, several at a time, so that no class can disturb another."""

import resource
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from benchmarks.architectures.cells import FAILED, OPERATIONS, Cell, run_cell
from benchmarks.architectures.classes import ModelClass

Results = dict[str, dict[str, Any]]
"""The fields of each `Cell` and its seconds, by the name of the operation."""
LONGEST = 180.0
"""Seconds that one class may take."""
_CONTEXT = get_context("fork")


def run_class(model_class: ModelClass, operations: Sequence[str]) -> Results:
    """Run operations on one class; an exception that is no refusal becomes a failed cell with its traceback."""
    results: Results = {}
    for name in operations:
        start = time.perf_counter()
        try:
            cell = run_cell(OPERATIONS[name], model_class)
        except Exception as error:
            last = traceback.format_exception(error)[-4:]
            cell = Cell(FAILED, "".join(last).strip())
        results[name] = {**asdict(cell), "seconds": round(time.perf_counter() - start, 2)}
    return results


def run_classes(
    classes: Sequence[ModelClass], operations: Sequence[str], workers: int
) -> Iterator[tuple[ModelClass, Results]]:
    """Run operations on classes, `workers` at a time.

    Args:
        classes: the classes.
        operations: names of `OPERATIONS`.
        workers: the number of processes.

    Yields:
        Each class with its results, in the order in which they finish.
    """
    waiting, running = list(reversed(classes)), dict[Connection, tuple[ModelClass, Any, float]]()
    while waiting or running:
        while waiting and len(running) < workers:
            model_class = waiting.pop()
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(target=_send_results, args=(sender, model_class, operations))
            process.start()
            sender.close()
            running[receiver] = (model_class, process, time.monotonic())
        ready = wait(list(running), timeout=1.0)
        late = [one for one, (_, _, start) in running.items() if time.monotonic() - start > LONGEST]
        for receiver in [one for one in running if one in ready or one in late]:
            model_class, process, _ = running.pop(receiver)
            yield model_class, _receive(receiver, process, operations)


def _send_results(sender: Connection, model_class: ModelClass, operations: Sequence[str]) -> None:

    torch.set_num_threads(1)
    # A traceback is in the results; a recursion or a large allocation ends this process alone.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sender.send(run_class(model_class, operations))
    sender.close()


def _receive(receiver: Connection, process: Any, operations: Sequence[str]) -> Results:
    try:
        results: Results = receiver.recv() if receiver.poll() else {}
    except EOFError:
        results = {}
    if not results:
        process.terminate()
    process.join()
    receiver.close()
    why = f"the process of the class ended with status {process.exitcode}, or took more than {LONGEST:.0f} s"
    return results or {name: {**asdict(Cell(FAILED, why)), "seconds": LONGEST} for name in operations}
