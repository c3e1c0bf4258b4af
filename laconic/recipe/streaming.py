"""Run a recipe on one block at a time: the checks, the scratch folder, and the streamed model."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laconic.errors import UserError, add_place
from laconic.model import LanguageModel
from laconic.model.loading import load_streamed
from laconic.recipe.schema import Recipe, key_of
from laconic.store.streamed import FormatStructures


def check_stream(recipe: Recipe, output: Path | None, is_loaded: bool) -> None:
    """Check that a recipe can run on one block at a time.

    Args:
        recipe: the recipe.
        output: the new folder; None if nothing is written.
        is_loaded: whether the model is in memory already.

    Raises:
        UserError: a step needs the whole model, or there is no folder to write to.
    """
    if is_loaded:
        raise UserError("stream must be left out for a model that is in memory already; give its folder or hub name.")
    if output is None:
        raise UserError("stream needs output, the folder to write to, because the model may not fit into memory.")
    for index, step in enumerate(recipe.steps):
        reason = step.stream_obstacle()
        if reason is not None:
            error = UserError(f"stream must be left out for '{step.name}': {reason}.")
            raise add_place(error, f"recipe.steps[{index}]") if len(recipe.steps) > 1 else error


@contextmanager
def open_streamed(recipe: Recipe, output: Path, device: str) -> Iterator[LanguageModel]:
    """Load the model of a recipe for streaming; its scratch folder lies beside the output, and is removed at the end.

    Args:
        recipe: the recipe.
        output: the new folder.
        device: the device of parts that are on loan.

    Raises:
        UserError: as `load_streamed`.
    """
    scratch = output.absolute().parent / f".{output.name}.scratch-{key_of(recipe)}"
    try:
        yield load_streamed(recipe.model, scratch, structures=FormatStructures(), device=device)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
