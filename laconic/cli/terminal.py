"""Output of the verbs: results on stdout, progress on stderr, quiet libraries, and several processes.

Under `torchrun` or `accelerate launch` only the first process prints. Without a launcher `laconic.processes` is not
imported, because that imports torch.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from laconic.errors import LONGEST_SENTENCE, Notice, truncate
from laconic.memory import resident_memory
from laconic.progress import Item, Track, silent
from laconic.system import is_launched

if TYPE_CHECKING:
    from laconic.api.results import Result

Returned = TypeVar("Returned")
Arguments = ParamSpec("Arguments")
SECONDS_BETWEEN_LINES = 5.0
"""Seconds of work before the first line of progress on a stderr that is no terminal, and between two lines."""


def show(result: dict[str, Any], as_json: bool, *readable: RenderableType) -> None:
    """Print a result: one JSON object, or lines and tables."""
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


def show_result(result: "Result", as_json: bool, *before: str) -> None:
    """Print the result of a function of laconic, after the lines `before`."""
    parts = (part if isinstance(part, str) else part[1].to_rich(part[0] or None) for part in result.parts())
    show(result.to_dict(), as_json, *before, *parts)


def print_notice(text: str) -> None:
    """Print one line on stderr."""
    if is_rank_zero():
        typer.echo(truncate(text, LONGEST_SENTENCE), err=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block hide warnings of libraries, and print each notice of laconic once."""
    printed: set[str] = set()

    def print_once(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in printed:
            printed.add(str(message))
            print_notice(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Notice)
        warnings.showwarning = print_once
        yield


@contextmanager
def progress_bars() -> Iterator[Track]:
    """Show progress on stderr within the block."""
    console = Console(stderr=True)
    count, left = TextColumn("{task.fields[at]}"), TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, left, MemoryColumn())
    _no_bars_of_datasets()
    hidden = not (console.is_terminal and is_rank_zero())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        yield Bars(bars, console.is_terminal) if is_rank_zero() else silent


class MemoryColumn(ProgressColumn):
    """The memory that the process takes now; empty where the system does not say."""

    def render(self, task: Task) -> Text:
        """Read the memory, as often as the bar is drawn."""
        return Text(_memory_in_use())


def _memory_in_use() -> str:
    used = resident_memory()
    return "" if used is None else f"{used / 1e9:.1f} GB in memory"


class Bars:
    """A `Track` that draws a bar on a terminal, and prints a line now and then elsewhere.

    Both have the number of finished items, the time left, and the memory in use.
    """

    def __init__(self, bars: Progress, is_terminal: bool) -> None:
        self._bars = bars
        self._is_terminal = is_terminal

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
        return self._drawn(items, what, work) if self._is_terminal else _printed(items, what, work)

    def _drawn(self, items: Sequence[Item], what: str, work: Sequence[float] | None) -> Iterator[Item]:
        each = [1.0] * len(items) if work is None else list(work)
        task = self._bars.add_task(what, total=sum(each), at=f"0/{len(items)}")
        try:
            for done, (item, part) in enumerate(zip(items, each, strict=True), start=1):
                yield item
                self._bars.update(task, advance=part, at=f"{done}/{len(items)}")
        finally:
            self._bars.remove_task(task)


def _printed(items: Sequence[Item], what: str, work: Sequence[float] | None) -> Iterator[Item]:
    each = [1.0] * len(items) if work is None else list(work)
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES and done < len(items):
            # The first item also loads what all items share, so its time does not predict that of the others.
            finished = sum(each[:done]) if done > 1 or work is not None else 0
            left = f", about {(now - start) / finished * sum(each[done:]):.0f} s left" if finished else ""
            memory = _memory_in_use()
            print_notice(f"{what}: {done} of {len(items)}{left}{memory and f', {memory}'}")
            last = now


def silence_libraries() -> None:
    """Turn off logs and progress bars of libraries.

    This imports transformers, which takes seconds. A verb therefore first makes all checks that do not need it.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # huggingface_hub logs every retry.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    # MLflow logs every table that it creates.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def let_waiting_threads_sleep() -> None:
    """Let the threads of a parallel decomposition sleep while they wait for each other, unless the user decided it.

    By default they spin. Where other programs need the cores, a thread then spins while the one that it waits for is
    not running: `eigh` of 1,536 columns took 16 seconds with two threads, 3 with one, and 2 with two that sleep. Tiny
    layers run slower with threads that sleep, so verbs that measure the time of a model do not call this. OpenMP reads
    the variable when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _no_bars_of_datasets() -> None:
    from datasets.utils.tqdm import disable_progress_bars

    disable_progress_bars()


def is_rank_zero() -> bool:
    """Whether this process has rank 0. Only that one writes and prints."""
    if not is_launched():
        return True
    from laconic import processes

    return processes.is_rank_zero()


def process_group() -> AbstractContextManager[None]:
    """Join the process group of the launcher for the block.

    Raises:
        UserError: the processes do not find each other.
    """
    if not is_launched():
        return nullcontext()
    from laconic import processes

    return processes.process_group()


def sync_errors() -> AbstractContextManager[None]:
    """Raise a UserError of one process in all processes of the block."""
    if not is_launched():
        return nullcontext()
    from laconic import processes

    return processes.sync_errors()


def on_rank_zero(verb: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Make a verb run in the process of rank 0 only; the others wait for its result."""

    @wraps(verb)
    def run_once(*arguments: Arguments.args, **named: Arguments.kwargs) -> Returned:
        if not is_launched():
            return verb(*arguments, **named)
        from laconic import processes

        return processes.on_rank_zero(verb)(*arguments, **named)

    return run_once
