"""The harness by itself: with its seeds, and without its bars and log lines, which would mix with laconic's."""

import io
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from lm_eval.api import task

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "few_shot": 1234}
"""The harness's defaults."""


@contextmanager
def isolated() -> Iterator[None]:
    """Within the block the harness says nothing but by its errors, and random numbers are those of its seeds;
    afterwards they go on as if nothing had been."""
    with _quiet(), _seeded():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, task.tqdm
    logger.setLevel(logging.CRITICAL)
    # It draws a bar while it writes prompts, and has no switch for it.
    task.tqdm = _without_bar  # type: ignore[assignment]
    try:
        # Its bootstrap prints.
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        task.tqdm = bars


@contextmanager
def _seeded() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(SEEDS["random"])
            np.random.seed(SEEDS["numpy"])
            torch.manual_seed(SEEDS["torch"])
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
