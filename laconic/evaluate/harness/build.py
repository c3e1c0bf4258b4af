"""Loads one of the harness's tasks with its rows, from local files or from where its YAML says.

`isolate_harness` keeps the harness from printing, and gives it the random seeds that it has by itself.
"""

import io
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from lm_eval.api import task
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from laconic.calibrate.sources.hub import find_hub
from laconic.errors import UserError, reason_of
from laconic.evaluate.harness.local import SPLIT, LocalData, find_local_data, find_task_file, local_files

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "few_shot": 1234}
"""The harness's defaults."""


@contextmanager
def isolate_harness() -> Iterator[None]:
    """Within the block the harness says nothing but by its errors, and random numbers are those of its seeds;
    afterwards they go on as if nothing had been."""
    with _silence_harness(), _use_harness_seeds():
        yield


@contextmanager
def _silence_harness() -> Iterator[None]:
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
def _use_harness_seeds() -> Iterator[None]:
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


@dataclass(frozen=True)
class LoadedTask:
    """A task of the harness with its rows.

    Args:
        task: the harness's own object.
        source: where the rows come from.
        split: that the rows are from.
    """

    task: Task
    source: str
    split: str


def load_task(name: str) -> LoadedTask:
    """The task with its rows and, where its YAML asks for them, its examples drawn with the harness's seed.

    Raises:
        UserError: no such task, or its rows or a package of its own cannot be had.
    """
    manager, config = _load_definition(name)
    _check_supported(name, config)
    local = _find_local(config)
    with isolate_harness(), _explain_errors(name):
        definition = name if local is None else _with_local_rows(name, config, local)
        task = manager.load([definition])["tasks"][name]
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SEEDS["few_shot"])
    source = local.source if local else ":".join(filter(None, _dataset(config))) or f"harness/{name}"
    return LoadedTask(task, source, SPLIT if local else _split(config))


def check_task(name: str) -> None:
    """Raise UserError where `load_task` would for a missing task or data set; no row is read."""
    _, config = _load_definition(name)
    _check_supported(name, config)
    dataset, configuration = _dataset(config)
    # What is made in code, or of files that the YAML names, shows when it is built.
    if _find_local(config) or dataset.count("/") != 1 or {"custom_dataset", "dataset_kwargs", "class"} & config.keys():
        return
    try:
        find_hub(dataset, configuration, (_split(config),))
    except UserError as error:
        files = local_files(dataset, configuration)
        raise UserError(f"There is no {files}, and the hub does not help: {error}") if files else error from error


def check_rows(name: str) -> None:
    """Raise UserError where a local file that stands in for the task's rows cannot be read, or has none."""
    _, config = _load_definition(name)
    local = _find_local(config)
    if local is not None:
        local.rows()


def generates_text(name: str) -> bool:
    """Whether the model writes its answers, which is what the harness takes a task for that does not say."""
    _, config = _load_definition(name)
    return config.get("output_type", "generate_until") == "generate_until"


def _load_definition(name: str) -> tuple[TaskManager, Mapping[str, Any]]:
    """What loads the task, and its configuration with functions by their names."""
    file = find_task_file(name)
    with isolate_harness(), _explain_errors(name):
        manager = TaskManager(include_defaults=False, include_path=str(file.parent))
        return manager, manager.task_index[name].cfg or {}


def _check_supported(name: str, config: Mapping[str, Any]) -> None:
    if config.get("unsafe_code"):
        raise UserError(f"'harness/{name}' runs code that the model writes, which laconic does not; take another task.")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(
            f"'harness/{name}' shows pictures or sounds, and laconic's models read text; take another task."
        )


def _find_local(config: Mapping[str, Any]) -> LocalData | None:
    """Local files for the rows of a task; they hold the validation split, and no few-shot examples."""
    if _split(config) != SPLIT or config.get("num_fewshot") or "class" in config:
        return None
    return find_local_data(*_dataset(config))


def _with_local_rows(name: str, config: Mapping[str, Any], local: LocalData) -> dict[str, Any]:
    """The task with nothing changed but its rows; a group of one is how the harness lets a task be changed."""

    def rows(**_: Any) -> DatasetDict:
        return DatasetDict({SPLIT: Dataset.from_list(local.rows())})

    # Splits that are not there would be read for examples, though none is shown.
    absent = {split: None for split in ("training_split", "fewshot_split") if config.get(split) not in (None, SPLIT)}
    return {"group": f"{name} on local files", "task": [{"task": name, "custom_dataset": rows, **absent}]}


def _dataset(config: Mapping[str, Any]) -> tuple[str, str | None]:
    return config.get("dataset_path") or "", config.get("dataset_name")


def _split(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config.get("validation_split") or SPLIT


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """What goes wrong with the harness's files or with the hub is told in a sentence."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"'harness/{name}' needs a package of its own: {reason_of(error)}; install it.") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"The rows of 'harness/{name}' cannot be had: {reason_of(error)}; check the network, or take another task."
        ) from error
