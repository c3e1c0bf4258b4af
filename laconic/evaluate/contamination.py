"""That no model is judged on the rows it was made with: which those were, and how many of them a task has.

What a saved model was made with stands in the recipe beside it, and in that beside the model it was made from. Rows of
a calibration source are those of its training split, whether a step drew them or not. A data set of the hub is not
read for this: it keeps its splits apart.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from laconic.calibrate.corpus import Corpus, file_of, is_builtin, read
from laconic.errors import UserError
from laconic.store.folder import RECIPE
from laconic.yaml_loader import read_yaml


def made_with(*models: str) -> tuple[str, ...]:
    """The calibration sources of saved models and of what they were made from; none where there is no recipe."""
    sources: dict[str, None] = {}
    seen: set[Path] = set()
    for model in models:
        here: object = model
        while isinstance(here, str) and here and (folder := _folder(here)) not in seen:
            seen.add(folder)
            recipe = _recipe(folder / RECIPE)
            if isinstance(recipe.get("data"), str):
                sources[recipe["data"]] = None
            here = recipe.get("model")
    return tuple(sources)


def _folder(named: str) -> Path:
    """Where `named` leads; a link to itself leads to itself."""
    return Path(os.path.realpath(os.path.expanduser(named)))


def _recipe(path: Path) -> dict[str, str]:
    """What the file says; nothing where it is not there or is not laconic's."""
    try:
        said = read_yaml(path, "recipe")
    except UserError:
        return {}
    return said if isinstance(said, dict) else {}


def check_apart(judged: Iterable[tuple[str, str]], calibration: Sequence[str]) -> None:
    """Raise UserError where the rows of a task are in the very file that a calibration source is read from.

    judged: the name of each task, and the source whose dev split judges.
    """
    files = {file: source for source in calibration if (file := file_of(source, "train")) is not None}
    for name, source in judged:
        file = file_of(source, "dev")
        if file in files:
            raise UserError(
                f"The task '{name}' would judge the model on rows that it was calibrated on: '{file}' serves both "
                "splits; name another file, or a folder with one for each split."
            )


def shared_rows(judged: Corpus, calibration: Sequence[str]) -> dict[str, int]:
    """How many of the `judged` rows have the text of a row of each calibration source that can be read here."""
    return {source: _shared(judged, texts) for source in calibration if (texts := _texts(source)) is not None}


def _shared(judged: Corpus, texts: frozenset[str]) -> int:
    return sum(example.joined.strip() in texts for example in judged.examples)


def _texts(source: str) -> frozenset[str] | None:
    if not is_builtin(source) and file_of(source, "train") is None:
        return None
    return frozenset(example.joined.strip() for example in read(source, "train").examples)
