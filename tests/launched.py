"""Programs in several processes that form a group, as `torchrun` starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 120


def start(*command: object, cache: Path, count: int = 2) -> list[subprocess.Popen[str]]:
    """Start a Python program in several processes, in an environment as `torchrun` makes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "LACONIC_CACHE": str(cache),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]


def launched(*command: object, cache: Path, count: int = 2) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each of the processes of a Python program."""
    programs = start(*command, cache=cache, count=count)
    try:
        said = [program.communicate(timeout=PATIENCE) for program in programs]
    finally:
        for program in programs:
            program.kill()
    return [(program.returncode, out, err) for program, (out, err) in zip(programs, said, strict=True)]
