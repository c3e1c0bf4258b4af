"""Data sets of the Hugging Face hub, through the package `datasets`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from laconic.calibrate.examples import Example
from laconic.calibrate.sources.files import SPLIT_NAMES
from laconic.calibrate.sources.glue import GlueTask
from laconic.calibrate.sources.records import example, label_value
from laconic.errors import UserError, reason_of

GLUE = "nyu-mll/glue"


@dataclass(frozen=True)
class HubSplit:
    """A split that the hub is known to have."""

    name: str
    config: str | None
    split: str

    def rows(self) -> Iterable[dict[str, Any]]:
        from datasets import load_dataset  # noqa: PLC0415 (slow to import)

        return _asked(self.name, lambda: load_dataset(self.name, self.config, split=self.split))


def find_hub(name: str, config: str | None, wanted: tuple[str, ...]) -> HubSplit:
    """The first of the `wanted` splits that the data set has.

    Raises:
        UserError: the hub cannot be reached, or has no such data set, configuration or split.
    """
    from datasets import get_dataset_split_names  # noqa: PLC0415 (slow to import)

    splits = _asked(name, lambda: get_dataset_split_names(name, config))
    for split in wanted:
        if split in splits:
            return HubSplit(name, config, split)
    raise UserError(f"The hub data set '{name}' has no split {' or '.join(wanted)}; it has {', '.join(splits)}.")


def hub_examples(source: str, split: str) -> Callable[[], list[Example]]:
    """A reader of one split of `owner/name[:config]`."""
    name, _, config = source.partition(":")
    found = find_hub(name, config or None, SPLIT_NAMES[split])
    return lambda: [example(_labelled(row), f"{source}[{at}]") for at, row in enumerate(found.rows())]


def hub_glue(task: GlueTask, split: str) -> Callable[[], list[Example]]:
    """A reader of one split of a GLUE task."""
    try:
        found = find_hub(GLUE, task.hub, (task.hub_dev if split == "dev" else split,))
    except UserError as error:
        missing = f"LACONIC_DATA/glue/{task.folder}/{task.dev if split == 'dev' else split}.tsv"
        raise UserError(f"There is no {missing}, and the hub does not help: {error}") from error

    def read() -> list[Example]:
        return [
            Example(
                *(row[field] for field in task.hub_texts),
                label=label_value(row["label"], f"{GLUE}:{task.hub}[{at}]", task.scale),
            )
            for at, row in enumerate(found.rows())
        ]

    return read


def _labelled(row: dict[str, Any]) -> dict[str, Any]:
    """The hub marks a hidden label by −1."""
    return {field: value for field, value in row.items() if not (field == "label" and value == -1)}


def _asked(name: str, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except (OSError, ValueError) as error:
        raise UserError(
            f"The data '{name}' is no local file and cannot be had from the hub: {reason_of(error)}; "
            "check the name and the network, or give a local file."
        ) from error
