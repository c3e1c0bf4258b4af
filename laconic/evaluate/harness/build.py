"""One task of the harness with its rows: from local files where there are any, else from where its YAML says."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from laconic.calibrate.sources.hub import find_hub
from laconic.errors import UserError, reason_of
from laconic.evaluate.harness.isolation import SEEDS, isolated
from laconic.evaluate.harness.local import SPLIT, LocalData, local_data, wanted_files
from laconic.evaluate.harness.names import find_task


@dataclass(frozen=True)
class Built:
    """A task of the harness, and where its rows come from; `split` is the one that it judges on."""

    task: Task
    source: str
    split: str


def build(name: str) -> Built:
    """The task with its rows and, where its YAML asks for them, its examples drawn with the harness's seed.

    Raises:
        UserError: no such task, or its rows or a package of its own cannot be had.
    """
    manager, config = _defined(name)
    _refuse(name, config)
    local = _local(config)
    with isolated(), _explained(name):
        wanted = name if local is None else _on_rows(name, config, local)
        task = manager.load([wanted])["tasks"][name]
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SEEDS["few_shot"])
    source = local.source if local else ":".join(filter(None, _dataset(config))) or f"harness/{name}"
    return Built(task, source, SPLIT if local else _split(config))


def check(name: str) -> None:
    """Raise UserError where `build` would for a missing task or data set; no row is read."""
    _, config = _defined(name)
    _refuse(name, config)
    dataset, configuration = _dataset(config)
    # What is made in code, or of files that the YAML names, shows when it is built.
    if _local(config) or dataset.count("/") != 1 or {"custom_dataset", "dataset_kwargs", "class"} & config.keys():
        return
    try:
        find_hub(dataset, configuration, (_split(config),))
    except UserError as error:
        files = wanted_files(dataset, configuration)
        raise UserError(f"There is no {files}, and the hub does not help: {error}") if files else error from error


def check_rows(name: str) -> None:
    """Raise UserError where a local file that stands in for the task's rows cannot be read, or has none."""
    _, config = _defined(name)
    local = _local(config)
    if local is not None:
        local.rows()


def writes(name: str) -> bool:
    """Whether the model writes its answers, which is what the harness takes a task for that does not say."""
    _, config = _defined(name)
    return config.get("output_type", "generate_until") == "generate_until"


def _defined(name: str) -> tuple[TaskManager, Mapping[str, Any]]:
    """What loads the task, and its configuration with functions by their names."""
    file = find_task(name)
    with isolated(), _explained(name):
        manager = TaskManager(include_defaults=False, include_path=str(file.parent))
        return manager, manager.task_index[name].cfg or {}


def _refuse(name: str, config: Mapping[str, Any]) -> None:
    if config.get("unsafe_code"):
        raise UserError(f"'harness/{name}' runs code that the model writes, which laconic does not; take another task.")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(
            f"'harness/{name}' shows pictures or sounds, and laconic's models read text; take another task."
        )


def _local(config: Mapping[str, Any]) -> LocalData | None:
    """Local files hold the split that most tasks judge on, and no examples to show before a question."""
    if _split(config) != SPLIT or config.get("num_fewshot") or "class" in config:
        return None
    return local_data(*_dataset(config))


def _on_rows(name: str, config: Mapping[str, Any], local: LocalData) -> dict[str, Any]:
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
def _explained(name: str) -> Iterator[None]:
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
