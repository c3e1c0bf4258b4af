"""Load a task of the harness with its rows, from local files or from the data set in its YAML file.

`isolate_harness` suppresses the output of the harness, and sets the random seeds that its own program sets.
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

from laconic.calibrate.sources.hub import find_split
from laconic.errors import UserError, reason_of
from laconic.evaluate.harness.local import SPLIT, LocalData, find_local_data, find_task_file, local_files

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "few_shot": 1234}
"""The default seeds of the harness."""


@contextmanager
def isolate_harness() -> Iterator[None]:
    """Within the block, the harness prints and logs nothing, and random generators have its default seeds.

    The states of the random generators are restored after the block.
    """
    with _silence_harness(), _use_harness_seeds():
        yield


@contextmanager
def _silence_harness() -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    # tqdm is a class there, and a function does as well.
    namespace: Any = task
    level, bars = logger.level, namespace.tqdm
    logger.setLevel(logging.CRITICAL)
    # The harness has no option to disable its progress bar.
    namespace.tqdm = _without_bar
    try:
        # The bootstrap of the harness prints to stdout.
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        namespace.tqdm = bars


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
        task: the task object of the harness.
        source: the data source of the rows.
        split: the split of the rows.
    """

    task: Task
    source: str
    split: str


def load_task(name: str) -> LoadedTask:
    """Load a task with its rows. Few-shot examples, if its YAML asks for them, are drawn with the harness's seed.

    Raises:
        UserError: there is no such task, its rows cannot be loaded, or a package that it needs is not installed.
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
    """Check that a task and its data set exist, without reading rows.

    Raises:
        UserError: as in `load_task`, for a missing task or data set.
    """
    _, config = _load_definition(name)
    _check_supported(name, config)
    dataset, configuration = _dataset(config)
    # A data set that is made by code, or from files in the YAML, is checked only when it is built.
    if _find_local(config) or dataset.count("/") != 1 or {"custom_dataset", "dataset_kwargs", "class"} & config.keys():
        return
    try:
        find_split(dataset, configuration, (_split(config),))
    except UserError as error:
        files = local_files(dataset, configuration)
        raise UserError(f"There is no {files}, and the hub does not help: {error}") if files else error from error


def check_rows(name: str) -> None:
    """Raise UserError if the rows of a task come from a local file that cannot be read or has no rows."""
    _, config = _load_definition(name)
    local = _find_local(config)
    if local is not None:
        local.rows()


def generates_text(name: str) -> bool:
    """Whether the model generates its answers. This is the harness's default for a task without an `output_type`."""
    _, config = _load_definition(name)
    return config.get("output_type", "generate_until") == "generate_until"


def _load_definition(name: str) -> tuple[TaskManager, Mapping[str, Any]]:
    """The task manager of the harness, and the configuration of the task in which functions are names."""
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
    """Local files with the rows of a task; None if the task needs another split or few-shot examples."""
    if _split(config) != SPLIT or config.get("num_fewshot") or "class" in config:
        return None
    return find_local_data(*_dataset(config))


def _with_local_rows(name: str, config: Mapping[str, Any], local: LocalData) -> dict[str, Any]:
    """The configuration of a task with its rows replaced. The harness allows changes only to tasks inside a group."""

    def rows(**_: Any) -> DatasetDict:
        return DatasetDict({SPLIT: Dataset.from_list(local.rows())})

    # Remove the other splits: the harness would read them for few-shot examples, although there are none.
    absent = {split: None for split in ("training_split", "fewshot_split") if config.get(split) not in (None, SPLIT)}
    return {"group": f"{name} on local files", "task": [{"task": name, "custom_dataset": rows, **absent}]}


def _dataset(config: Mapping[str, Any]) -> tuple[str, str | None]:
    return config.get("dataset_path") or "", config.get("dataset_name")


def _split(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config.get("validation_split") or SPLIT


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Convert errors of the harness, its files or the hub to UserErrors."""
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
