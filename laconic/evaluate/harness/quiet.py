"""The harness without its bars and log lines, which would mix with what laconic shows."""

import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from lm_eval.api import task


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block the harness says nothing but by its errors."""
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


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
