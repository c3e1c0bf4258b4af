"""Run a recipe on one block at a time: the checks, the scratch folder, and the streamed model."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import transformers

from laconic.calibrate import Calibration
from laconic.errors import UserError, add_place
from laconic.fingerprint import hash_packages, hash_tensors
from laconic.model import LanguageModel
from laconic.model.checkpoints.checkpoint import Tokenizers
from laconic.model.checkpoints.weights import find_weights
from laconic.model.loading import load_streamed, model_location
from laconic.processes import barrier, is_rank_zero, rank
from laconic.recipe.schema import Recipe, key_of
from laconic.recipe.scratch import open_scratch
from laconic.store.part_structures import PartStructures

PACKAGES = ("numerics", "formats", "model", "calibrate", "methods", "allocate", "compress", "recover", "store")
"""The packages of laconic that decide what a part holds."""


def check_stream(recipe: Recipe, output: Path | None, is_loaded: bool, structures: Sequence[LanguageModel]) -> None:
    """Check that a recipe can run on one block at a time.

    Args:
        recipe: the recipe.
        output: the new folder; None if nothing is written.
        is_loaded: whether the model is in memory already.
        structures: the model before each step, without weights.

    Raises:
        UserError: a step needs the whole model, or there is no folder to write to.
    """
    if is_loaded:
        raise UserError("stream must be left out for a model that is in memory already; give its folder or hub name.")
    if output is None:
        raise UserError("stream needs output, the folder to write to, because the model may not fit into memory.")
    for index, (step, lm) in enumerate(zip(recipe.steps, structures, strict=False)):
        reason = step.stream_obstacle(lm)
        if reason is not None:
            error = UserError(f"The step '{step.name}' cannot be streamed: {reason}, or leave out stream.")
            raise add_place(error, f"recipe.steps[{index}]") if len(recipe.steps) > 1 else error


@contextmanager
def open_streamed(
    recipe: Recipe, output: Path, data: Calibration | None, device: str, tokenizers: Tokenizers
) -> Iterator[LanguageModel]:
    """Load the model of a recipe for streaming, with a scratch folder beside the output.

    The folder is removed at the end, and stays after an error. The next run of the same recipe then goes on from there,
    unless the model, the calibration data or laconic has changed. The first of several processes makes and removes the
    folder, which all share.

    Args:
        recipe: the recipe.
        output: the new folder.
        data: the calibration data; None if the recipe has none.
        device: the device of parts that are on loan.
        tokenizers: the tokenizers of the model.

    Raises:
        UserError: as `load_streamed`; or another run writes the output, the scratch folder cannot be written, or a
            process on another machine does not find it.
    """
    scratch = scratch_folder(recipe, output)
    with ExitStack() as stack:
        if is_rank_zero():
            stack.enter_context(open_scratch(scratch, content_key(recipe, data), output))
        barrier()
        if not scratch.is_dir():
            raise UserError(
                f"The process of rank {rank()} does not find the scratch folder '{scratch}' of the first process; name "
                "an output on a disk that all machines share."
            )
        yield load_streamed(recipe.model, scratch, structures=PartStructures(), device=device, tokenizers=tokenizers)


def scratch_folder(recipe: Recipe, output: Path) -> Path:
    """The scratch folder of a run, beside its output."""
    return output.absolute().parent / f".{output.name}.scratch-{key_of(recipe)}"


def content_key(recipe: Recipe, data: Calibration | None) -> str:
    """A hash of everything that determines the parts: the recipe, the files of the model, the data, and the code."""
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(
        json.dumps([key_of(recipe), hash_packages(*PACKAGES), torch.__version__, transformers.__version__]).encode()
    )
    location = model_location(recipe.model)
    weights = None if location is None else find_weights(location)
    for file in () if weights is None else weights.files:
        status = file.stat()
        hashed.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    config = None if location is None else location.json("config.json")
    hashed.update(json.dumps(config, sort_keys=True).encode())
    for batch in () if data is None else data.batches:
        hash_tensors(hashed, batch)
    return hashed.hexdigest()
