"""What the verbs share: results on stdout, progress on stderr, and quiet libraries.

Of several processes the first alone tells how far they are; the stdout of the others leads nowhere
(`laconic.cli.main`).
"""

import json
import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from laconic.cli.group import is_first
from laconic.errors import LONGEST_SENTENCE, Notice, shortened
from laconic.progress import Item, Track, silent

FIRST_WORD_AFTER = 5.0
"""Seconds of work before a stderr that is no terminal is told of it, and between two such lines."""


def show(result: dict[str, Any], as_json: bool, *readable: RenderableType) -> None:
    """Print the result: one JSON object, or what people read."""
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False, default=str))
        return
    console = Console(soft_wrap=False)
    for part in readable:
        if isinstance(part, str):
            # Paths and YAML are printed as they are, not broken into lines nor read as markup.
            typer.echo(part)
        else:
            console.print(part)


def remark(text: str) -> None:
    """One line for people, on stderr."""
    if is_first():
        typer.echo(shortened(text, LONGEST_SENTENCE), err=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block no warning of a library is shown, and each of laconic's notices is one line."""
    told: set[str] = set()

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            remark(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Notice)
        warnings.showwarning = tell
        yield


@contextmanager
def progress() -> Iterator[Track]:
    """Progress bars on stderr while a verb works."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]}"), TimeRemainingColumn())
    _no_bars_of_datasets()
    with Progress(*columns, console=console, transient=True, disable=not (console.is_terminal and is_first())) as bars:
        yield Bars(bars, console.is_terminal) if is_first() else silent


class Bars:
    """A `Track`: a bar with the time left on a terminal, a line now and then elsewhere."""

    def __init__(self, bars: Progress, is_terminal: bool) -> None:
        self._bars = bars
        self._is_terminal = is_terminal

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
        return self._drawn(items, what, work) if self._is_terminal else _told(items, what, work)

    def _drawn(self, items: Sequence[Item], what: str, work: Sequence[float] | None) -> Iterator[Item]:
        each = [1.0] * len(items) if work is None else list(work)
        task = self._bars.add_task(what, total=sum(each), at=f"0/{len(items)}")
        try:
            for done, (item, part) in enumerate(zip(items, each, strict=True), start=1):
                yield item
                self._bars.update(task, advance=part, at=f"{done}/{len(items)}")
        finally:
            self._bars.remove_task(task)


def _told(items: Sequence[Item], what: str, work: Sequence[float] | None) -> Iterator[Item]:
    each = [1.0] * len(items) if work is None else list(work)
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > FIRST_WORD_AFTER and done < len(items):
            # Of items that nothing is known of the first tells nothing of the others: it loads what all use.
            past = sum(each[:done]) if done > 1 or work is not None else 0
            left = f", about {(now - start) / past * sum(each[done:]):.0f} s left" if past else ""
            remark(f"{what}: {done} of {len(items)}{left}")
            last = now


def silence_libraries() -> None:
    """What a verb does before it works on a model. It imports transformers, which takes a while.

    So a verb first refuses whatever it can without.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # It tells of each time that it asks the hub again.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    # It tells of every table that it makes.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def _no_bars_of_datasets() -> None:
    from datasets.utils.tqdm import disable_progress_bars

    disable_progress_bars()
