"""What was worked out of every matrix, kept on disk, so that the same model and data at a second size cost seconds.

An entry is one safetensors file, named by a hash of everything that decides it: weights, configuration, what is
declared beside them, calibration tokens, labels, seed, method without its size, which matrices are solved as one, and
the code that solves them. Nothing about it is needed: a lost, damaged or unwritable entry costs time and no more.
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from laconic import processes
from laconic.cache import cache_folder, cache_limit
from laconic.calibrate import STATISTICS, Calibration, LayerStats
from laconic.model import LanguageModel

FOLDER = "solved"
ABANDONED = 24 * 3600.0
"""Seconds after which what a killed run left half written is removed."""


def key_of(lm: LanguageModel, data: Calibration, question: Sequence[str]) -> str:
    """The name of the entry; `question` says what is asked of each matrix."""
    hashed = hashlib.blake2b(digest_size=16)
    said = [torch.__version__, transformers.__version__, str(lm.dtype), lm.model.config.to_json_string()]
    hashed.update(json.dumps([*said, data.labels, data.seed, _code(), *question]).encode())
    tensors = [lm.model.state_dict(), *data.batches]
    for name, tensor in (pair for named in tensors for pair in sorted(named.items())):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(_bytes(tensor))
    hashed.update(b"" if lm.pipeline is None else lm.pipeline.to_bytes())
    return hashed.hexdigest()


def recall(key: str, device: torch.device) -> dict[str, LayerStats] | None:
    """What is known of each unit; None where there is no such entry, or some process cannot read it."""
    known = _read(key, device)
    return known if processes.everywhere(known is not None) else None


def _read(key: str, device: torch.device) -> dict[str, LayerStats] | None:
    path = _path(key)
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            contents = json.loads(file.metadata()["contents"])
            known = {unit: _known(lists, file.get_tensor) for unit, lists in contents.items()}
        os.utime(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return known


def keep(key: str, known: Mapping[str, LayerStats], statistics: bool) -> None:
    """Write the entry, unless it is too large or of some matrix has nothing; the first process does.

    With the `statistics`, where sizes still to come need them.
    """
    if not processes.is_first() or (not statistics and not all(what.solutions for what in known.values())):
        return
    tensors: dict[str, Tensor] = {}
    contents = {unit: _listed(what, statistics, tensors) for unit, what in known.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    if not tensors or size > cache_limit():
        return
    # safetensors refuses tensors that share memory.
    apart = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    path = _path(key)
    partial = path.with_suffix(f".{secrets.token_hex(4)}")
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, cache_limit() - size)
        try:
            save_file(apart, partial, {"contents": json.dumps(contents)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _listed(known: LayerStats, statistics: bool, tensors: dict[str, Tensor]) -> dict[str, list[list[object]]]:
    """Under which number each tensor of `known` is among `tensors`, to which it is added."""

    def add(tensor: Tensor) -> str:
        # One that several matrices share is written once.
        number = next((number for number, other in tensors.items() if other is tensor), str(len(tensors)))
        tensors[number] = tensor
        return number

    solutions = [[name, [add(part) for part in parts]] for name, parts in known.solutions.items()]
    collected = [[type(one).__name__, add(one.total), one.count] for one in known] if statistics else []
    return {"worked_out": solutions, "statistics": collected}


def _known(lists: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> LayerStats:
    kinds = {kind.__name__: kind for kind in STATISTICS}
    known = LayerStats(
        kinds[str(name)].restored(tensor(str(at)), int(str(count))) for name, at, count in lists["statistics"]
    )
    for name, parts in lists["worked_out"]:
        known.solutions[str(name)] = tuple(tensor(str(at)) for at in list(parts))
    return known


def _path(key: str) -> Path:
    return cache_folder() / FOLDER / f"{key}.safetensors"


def _make_room(folder: Path, limit: int) -> None:
    """Remove the entries that were used least recently until the others take at most `limit` bytes."""
    used = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in used:
        total += path.stat().st_size
        if total > limit:
            path.unlink(missing_ok=True)
    for partial in set(folder.iterdir()) - set(used):
        if time.time() - partial.stat().st_mtime > ABANDONED:
            partial.unlink(missing_ok=True)


@cache
def _code() -> str:
    """A hash of the modules that the entries come from: after a change of any, they are worked out anew."""
    root = Path(__file__).parents[1]
    parts = ("numerics", "formats", "model", "calibrate", "methods")
    files = sorted(file for part in parts for file in (root / part).rglob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=16).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
