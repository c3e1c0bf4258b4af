"""Data sets of the Hugging Face hub, through the package `datasets`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from laconic.calibrate.corpus import Example, Rows
from laconic.calibrate.sources.conll import TAGS
from laconic.calibrate.sources.files import SPLIT_NAMES
from laconic.calibrate.sources.glue import GlueTask
from laconic.calibrate.sources.records import LABELS, to_example
from laconic.errors import UserError, reason_of
from laconic.hub import out_of_reach

if TYPE_CHECKING:
    from datasets import Dataset

GLUE = "nyu-mll/glue"


def find_split(name: str, config: str | None, split_names: tuple[str, ...]) -> str:
    """Find the first of several split names that a hub data set has.

    Args:
        name: name of the data set, `owner/name`.
        config: configuration of the data set; None for the default.
        split_names: names of splits, the preferred first.

    Raises:
        UserError: the hub cannot be reached, or has no such data set, configuration or split.
    """
    from datasets import get_dataset_split_names  # noqa: PLC0415 (slow to import)

    splits = _query_hub(name, lambda: get_dataset_split_names(name, config))
    for split in split_names:
        if split in splits:
            return split
    raise UserError(f"The hub data set '{name}' has no split {' or '.join(split_names)}; it has {', '.join(splits)}.")


def _load(name: str, config: str | None, split: str) -> "Dataset":
    from datasets import load_dataset  # noqa: PLC0415 (slow to import)

    return _query_hub(name, lambda: load_dataset(name, config, split=split))


def hub_examples(source: str, split: str) -> Callable[[], Rows]:
    """Return a function that reads one split, `train` or `dev`, of `owner/name[:config]`."""
    name, _, config = source.partition(":")
    hub_split = find_split(name, config or None, SPLIT_NAMES[split])

    def read() -> Rows:
        data = _load(name, config or None, hub_split)
        return Rows([to_example(row, f"{name}[{at}]") for at, row in enumerate(data)], _class_names(data.features))

    return read


def hub_glue(task: GlueTask, split: str) -> Callable[[], Rows]:
    """Return a function that reads one split of a GLUE task from the hub.

    Args:
        task: the task.
        split: `train` or `dev`.

    Raises:
        UserError: the hub cannot be read, or has no such split.
    """
    config, dev = task.hub or task.name, split == "dev"
    hub_split = task.dev.replace("dev", "validation") if dev else split
    try:
        find_split(GLUE, config, (hub_split,))
    except UserError as error:
        missing = f"LACONIC_DATA/glue/{task.folder}/{task.dev if dev else split}.tsv"
        raise UserError(f"There is no {missing}, and the hub does not help: {error}") from error

    def read() -> Rows:
        rows = cast(Iterable[Mapping[str, Any]], _load(GLUE, config, hub_split))
        examples = [
            Example(
                *(row[field] for field in map(str, task.hub_texts or task.texts)),
                label=task.label_from(row["label"]),
                place=f"{GLUE}:{config}[{at}]",
            )
            for at, row in enumerate(rows)
        ]
        return Rows(examples, task.classes)

    return read


def _class_names(features: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of the label feature; empty if it is no `ClassLabel`."""
    from datasets import ClassLabel, LargeList, Sequence  # noqa: PLC0415 (slow to import)

    feature = next((features[name] for name in (*TAGS, *LABELS) if name in features), None)
    if isinstance(feature, (Sequence, LargeList)):
        feature = cast(Any, feature).feature
    return tuple(feature.names or ()) if isinstance(feature, ClassLabel) else ()


def _query_hub(name: str, query: Callable[[], Any]) -> Any:
    reason = out_of_reach(name, "dataset")
    if reason is not None and not _is_cached(name):
        raise UserError(
            f"The data '{name}' is no local file and cannot be loaded from the hub: its cache does not have it, and "
            f"the hub cannot be asked ({reason}); check the name and the network, or give a local file."
        )
    try:
        return query()
    except (OSError, ValueError) as error:
        raise UserError(
            f"The data '{name}' is no local file and cannot be loaded from the hub: {reason_of(error)}; "
            "check the name and the network, or give a local file."
        ) from error


def _is_cached(name: str) -> bool:
    """Whether the dataset is in a local cache, as files of the hub or as tables that `datasets` made."""
    from datasets.load import CachedDatasetModuleFactory  # noqa: PLC0415 (slow to import)

    files = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    if files.is_dir() or Path(name).is_dir():
        return True
    try:
        CachedDatasetModuleFactory(name).get_module()
    except FileNotFoundError:
        return False
    return True
