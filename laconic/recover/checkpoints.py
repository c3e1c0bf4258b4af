"""Checkpoints and results of trainings in the disk cache, so that an interrupted training continues.

Each training has a folder in the cache, named by a hash of everything that determines the result: the model before the
training, the rows, and the step. It contains the checkpoints of transformers' Trainer, logs, and after the training
`trained.safetensors` and `history.json`, which is written last.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from laconic.cache import cache_folder, cache_limit, evict
from laconic.files import replacing, write_json
from laconic.processes import is_rank_zero, on_rank_zero

FOLDER = "training"
STATE = "trainer_state.json"
WEIGHTS = "trained.safetensors"
HISTORY = "history.json"
CHECKPOINTS = "checkpoints"
LOGS = "logs"
LOCK = ".lock"
BEFORE = "before.safetensors"
"""The trainable parameters before the first update."""
RUNNING = 2 * 3600.0
"""If a training wrote a file within this number of seconds, it counts as running."""


@contextmanager
def training_folder(key: str | None) -> Iterator[Path]:
    """Provide the folder of a training. A second run of the same training waits, and then finds the result.

    Args:
        key: hash that names the training. If it is None, or the cache is off, the folder is a temporary one that is
            removed afterwards.
    """
    if key is None or cache_limit() == 0:
        # One folder for all processes; only the first one writes.
        folder = Path(on_rank_zero(mkdtemp)())
        try:
            yield folder
        finally:
            if is_rank_zero():
                shutil.rmtree(folder, ignore_errors=True)
        return
    folder = cache_folder() / FOLDER / key
    lock = FileLock(folder / LOCK)
    on_rank_zero(_open)(folder, lock)
    try:
        yield folder
    finally:
        lock.release()


def _open(folder: Path, lock: FileLock) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    os.utime(folder)
    _make_room(folder)


def read_logs(folder: Path) -> dict[str, bytes]:
    """Return the contents of TensorBoard's event files in a training folder, by file name."""
    return {file.name: file.read_bytes() for file in sorted((folder / LOGS).glob("events.*"))}


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of the last complete checkpoint, or None; incomplete checkpoints are removed."""
    checkpoints = folder / CHECKPOINTS
    for checkpoint in checkpoints.glob("checkpoint-*"):
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def load_finished(folder: Path, loss_module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read the result of a finished training.

    Args:
        folder: the folder of the training.
        loss_module: the module that is trained; its trainable parameters must match the saved tensors.

    Returns:
        The history and the trained tensors by name; None if the training is not finished or does not match.
    """
    try:
        history, tensors = json.loads((folder / HISTORY).read_text()), load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError):
        return None
    return (history, tensors) if tensors.keys() == trainable_parameters(loss_module).keys() else None


def save_finished(folder: Path, loss_module: nn.Module, history: Mapping[str, Any]) -> None:
    """Save the result of a training, and remove its checkpoints.

    Args:
        folder: the folder of the training.
        loss_module: the trained module.
        history: the log, which must be valid JSON.
    """
    save_trained(loss_module, folder / WEIGHTS)
    write_json(folder / HISTORY, history)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / BEFORE).unlink(missing_ok=True)


def trainable_parameters(loss_module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name; a shared parameter is listed once."""
    return {name: parameter for name, parameter in loss_module.named_parameters() if parameter.requires_grad}


def save_trained(loss_module: nn.Module, path: Path) -> None:
    """Write the trainable parameters to a safetensors file, atomically."""
    parameters = trainable_parameters(loss_module)
    with replacing(path) as partial:
        save_file({name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}, partial)


def load_trained(loss_module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load parameters that `save_trained` wrote, in place.

    Args:
        loss_module: the module that is trained.
        tensors: its trainable parameters by name.

    Raises:
        KeyError: the names differ from those of the trainable parameters.
    """
    parameters = trainable_parameters(loss_module)
    if parameters.keys() != tensors.keys():
        raise KeyError(", ".join(sorted(parameters.keys() ^ tensors.keys())))
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def _is_complete(checkpoint: Path) -> bool:
    # Trainer writes its state last.
    try:
        TrainerState.load_from_json(str(checkpoint / STATE))
    except (OSError, ValueError, TypeError):
        return False
    return (checkpoint / WEIGHTS).is_file()


def _make_room(current: Path) -> None:
    """Remove the least recently used trainings until the cache is within its limit; running trainings stay."""
    evict((folder for folder in current.parent.iterdir() if folder != current and not _may_run(folder)), cache_limit())


def _may_run(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        newest = max((file.stat().st_mtime for file in folder.rglob("*") if file.is_file()), default=0.0)
        return not (folder / HISTORY).is_file() and time.time() - newest < RUNNING
    return True
