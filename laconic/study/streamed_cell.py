"""Measure a cell of a study one block at a time, for a model that is larger than memory.

The output and its scratch folder have fixed names in the folder of the study, so that a worker that takes over the cell
of one that was killed goes on at the same block.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from laconic.errors import UserError
from laconic.evaluate import ReferenceCache
from laconic.evaluate.run import EvaluationSettings, evaluate_in_turn
from laconic.evaluate.tasks import check_window_tasks, standalone_tasks
from laconic.model import LanguageModel
from laconic.model.loading import load_streamed
from laconic.progress import Track
from laconic.recipe.run import run
from laconic.recipe.streaming import check_stream
from laconic.store import skeleton
from laconic.study.cells import MODELS, Cell, dense_sizes, result
from laconic.study.shared_folder import scratch_folder

STREAMED = "streamed"
"""The folder of models that are removed after their evaluation, in the folder of the study."""


def check_streamed(cell: Cell, structures: list[LanguageModel]) -> None:
    """Check that a cell can be measured one block at a time.

    Args:
        cell: the cell.
        structures: the model before each step and after the last one, without weights.

    Raises:
        UserError: a step needs the whole model, or an evaluation does.
    """
    check_stream(cell.recipe, Path(cell.key), False, structures)
    if cell.prepare:
        raise UserError("A study with stream has no prepare, because training needs the whole model; leave it out.")
    evaluation = cell.recipe.evaluate
    if evaluation is None:
        return
    if evaluation.cost:
        raise UserError("cost must be left out with stream, because it is measured on the model in memory.")
    if evaluation.tasks:
        check_window_tasks(evaluation.tasks, compared=True)


def measure_streamed(
    cell: Cell, source: str, folder: Path | None, references: ReferenceCache, device: str, track: Track
) -> dict[str, Any]:
    """Compress and evaluate the model of a cell one block at a time.

    Args:
        cell: the cell.
        source: the folder or hub name of its model.
        folder: the local folder of the study; None if it is at a URL.
        references: keeps what comparisons need of originals.
        device: the device of the block.
        track: reports progress.

    Returns:
        The record of the cell without its header.

    Raises:
        UserError: the model cannot be compressed or evaluated.
    """
    evaluate = partial(_evaluate, cell, references=references, device=device, track=track)
    if cell.baseline:
        return evaluate(source, None) | dense_sizes(skeleton(source))
    start = time.perf_counter()
    with _output(cell, folder) as output:
        record = run(replace(cell.recipe, model=source, evaluate=None), output, track=track, device=device)
        compressed = time.perf_counter()
        evaluation = evaluate(str(output), source)
    return {
        **evaluation,
        **result(cell, record.changes, record.file_bytes),
        "statistics": None,
        "seconds": {
            "compress": round(compressed - start, 3),
            "evaluate": round(time.perf_counter() - compressed, 3),
        },
    }


@contextmanager
def _output(cell: Cell, folder: Path | None) -> Iterator[Path]:
    """The folder for the compressed model. A killed worker may have left it; it is removed first."""
    if folder is None:
        with scratch_folder(None) as scratch:
            yield scratch / MODELS
        return
    output = folder / (MODELS if cell.save else STREAMED) / cell.key
    shutil.rmtree(output, ignore_errors=True)
    yield output
    if not cell.save:
        shutil.rmtree(output)
        with suppress(OSError):
            # Another worker may have written to it by now.
            output.parent.rmdir()


def _evaluate(
    cell: Cell, model: str, original: str | None, *, references: ReferenceCache, device: str, track: Track
) -> dict[str, Any]:
    evaluation = cell.recipe.evaluate
    tasks = () if evaluation is None else evaluation.tasks
    if original is None:
        tasks = standalone_tasks(tasks)
    if evaluation is None or not tasks:
        return {}
    results = evaluate_in_turn(
        partial(_open, model, device),
        None if original is None else partial(_open, original, device),
        tasks,
        EvaluationSettings(limit=evaluation.limit, cost=False, resume=True, references=references, track=track),
        sources=[model, *([] if original is None else [original])],
    ).to_json()
    # The baseline has its own record.
    results.pop("original", None)
    return {"evaluation": results}


@contextmanager
def _open(source: str, device: str) -> Iterator[LanguageModel]:
    yield load_streamed(source, device=device)
