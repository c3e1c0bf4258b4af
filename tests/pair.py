"""Two processes that form a group on this machine, and do together whatever a test gives them."""

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE = 120


class Pair:
    """Started once for many tests: to import everything takes far longer than what they do."""

    def __init__(self, meeting: Path) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(2)]
        self._here = [here for here, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, meeting, there), daemon=True)
            for rank, (_, there) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `work` in each process, and return each result, or the sentence of its `UserError`."""
        for pipe in self._here:
            pipe.send((work, arguments))
        assert all(pipe.poll(PATIENCE) for pipe in self._here), "a process hangs"
        return [pipe.recv() for pipe in self._here]

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _serve(rank: int, meeting: Path, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    from laconic.errors import UserError

    torch.set_num_threads(1)
    # As a launcher does; accelerate goes by them.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    limit = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2, timeout=limit)
    while True:
        work, arguments = pipe.recv()
        try:
            pipe.send(work(*arguments))
        except UserError as error:
            pipe.send(str(error))
