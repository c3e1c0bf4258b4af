"""Processes that are forked from one that has imported laconic: to start Python for each takes seconds."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")


def process(target: Callable[..., Any], args: tuple[Any, ...]) -> BaseProcess:
    """A process, not yet started, that calls `target` in the present environment."""
    CONTEXT.set_forkserver_preload(["laconic.study.executors", "laconic.cli.main", "laconic.api"])
    return CONTEXT.Process(target=_in_environment, args=(dict(os.environ), target, args))


def _in_environment(environment: dict[str, str], target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # The server has that of the test which started it.
    os.environ.clear()
    os.environ |= environment
    target(*args)


class Forked:
    """Stands for the context that `laconic.study.executors` starts its workers in."""

    Pipe = staticmethod(CONTEXT.Pipe)

    def Process(self, target: Callable[..., Any], args: tuple[Any, ...]) -> BaseProcess:
        return process(target, args)


def end_server() -> None:
    """End the process that is forked, and wait for it."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
