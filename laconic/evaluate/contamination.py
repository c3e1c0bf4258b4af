"""Check that a model is not evaluated on rows that it was calibrated on.

A task that reads the calibration file itself is refused. Single rows that both sources share are counted and reported.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.sources import is_builtin, read, source_file
from laconic.errors import UserError
from laconic.store.folder import RECIPE
from laconic.yaml_loader import read_yaml


def calibration_sources(*models: str) -> tuple[str, ...]:
    """The data sources that models were calibrated on, read from the recipes in their folders.

    Args:
        models: folders or hub names.

    Returns:
        The sources of the models, and of the models that they were made from. A model without a recipe has none.
    """
    sources: dict[str, None] = {}
    visited: set[Path] = set()
    for model in models:
        ancestor: object = model
        while isinstance(ancestor, str) and ancestor and (folder := _resolve_path(ancestor)) not in visited:
            visited.add(folder)
            recipe = _read_recipe(folder / RECIPE)
            if isinstance(recipe.get("data"), str):
                sources[recipe["data"]] = None
            ancestor = recipe.get("model")
    return tuple(sources)


def _resolve_path(path: str) -> Path:
    """The path with symbolic links resolved. Unlike with `Path.resolve`, a link to itself raises no error."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def _read_recipe(path: Path) -> dict[str, str]:
    """The fields of a recipe; empty if there is no file, or it is not a recipe of laconic."""
    try:
        recipe = read_yaml(path, "recipe")
    except UserError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


def check_disjoint(sources: Iterable[tuple[str, str]], calibration: Sequence[str]) -> None:
    """Check that no task has its rows in a file that a model was calibrated on.

    Args:
        sources: the name of each task, and the source of its rows.
        calibration: sources that the model was calibrated on.

    Raises:
        UserError: a task does.
    """
    files = {file: source for source in calibration if (file := source_file(source, "train")) is not None}
    for name, source in sources:
        file = source_file(source, "dev")
        if file in files:
            raise UserError(
                f"The task '{name}' would evaluate the model on rows that it was calibrated on: '{file}' serves both "
                "splits; name another file, or a folder with one for each split."
            )


def count_shared_rows(corpus: Corpus, calibration: Sequence[str]) -> dict[str, int]:
    """Count the evaluated rows whose text is also in the calibration data.

    Args:
        corpus: the evaluated rows.
        calibration: sources that the model was calibrated on. Sources that are not local files are ignored.

    Returns:
        The number of shared rows, by source.
    """
    counts: dict[str, int] = {}
    for source in calibration:
        if is_builtin(source) or source_file(source, "train") is not None:
            texts = {example.joined.strip() for example in read(source, "train").examples}
            counts[source] = sum(example.joined.strip() in texts for example in corpus.examples)
    return counts
