"""A disk cache of solutions and statistics, so that another size for the same model and data takes seconds.

An entry is one safetensors file, named by a hash of everything that determines its content: weights, configuration,
source of the model's and the method's classes, calibration tokens, labels, seed, the method without its size, the
division into groups, and laconic's own code. If an entry is missing or damaged or cannot be written, the results are
computed again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from laconic import processes
from laconic.cache import DiskCache
from laconic.calibrate import STATISTICS, Calibration, LayerStats, Statistic
from laconic.fingerprint import hash_classes, hash_packages, hash_tensors
from laconic.methods import Method
from laconic.model import LanguageModel

ENTRIES = DiskCache("solved", ".safetensors")
PACKAGES = ("numerics", "formats", "model", "calibrate", "methods")
"""The packages of laconic whose source is part of the hash."""


def key_of(lm: LanguageModel, data: Calibration, settings: Sequence[str], kinds: Iterable[type] = ()) -> str | None:
    """Compute the cache key of a result.

    Args:
        lm: the model before it is compressed.
        data: the calibration data.
        settings: everything else that determines the result, as strings.
        kinds: the classes that compute the result, from `kinds_of`; they may be defined in a plug-in or a script.

    Returns:
        32 hexadecimal digits. None if the source of a class is not available: a change of it could not be detected, so
        the result must not be cached.
    """
    classes = hash_classes((*map(type, lm.model.modules()), *kinds))
    if classes is None:
        return None
    hashed = hashlib.blake2b(digest_size=16)
    versions = [torch.__version__, transformers.__version__, str(lm.dtype), lm.model.config.to_json_string()]
    hashed.update(
        json.dumps([*versions, data.labels, data.seed, hash_packages(*PACKAGES), classes, *settings]).encode()
    )
    for tensors in (lm.model.state_dict(), *data.batches):
        hash_tensors(hashed, tensors)
    hashed.update(b"" if lm.pipeline is None else lm.pipeline.to_bytes())
    return hashed.hexdigest()


def key_of_step(
    lm: LanguageModel,
    data: Calibration,
    methods: Sequence[Method],
    needs: Iterable[type[Statistic]],
    settings: Sequence[str],
) -> str | None:
    """Compute the cache key of the solutions and statistics of a step. The size of its methods is no part of it.

    Args:
        lm: the model before it is compressed.
        data: the calibration data.
        methods: the methods.
        needs: the statistics that are collected.
        settings: everything else that determines the result, as strings.

    Returns:
        As `key_of`.
    """
    statistics = sorted(kind.__name__ for kind in needs)
    sizeless = [repr(method.without_size()) for method in methods]
    return key_of(lm, data, [*statistics, *settings[:1], *sizeless, *settings[1:]], kinds_of(methods))


def kinds_of(methods: Iterable[Method]) -> set[type]:
    """Return the classes that compute the results of methods: the methods, methods nested in them, and statistics."""
    kinds = set[type]()
    for method in methods:
        kinds |= {type(method), *method.required_statistics}
        kinds |= kinds_of(part for part in vars(method).values() if isinstance(part, Method))
    return kinds


def load_entry(
    key: str | None, device: torch.device, kinds: Iterable[type[Statistic]] = ()
) -> dict[str, LayerStats] | None:
    """Read an entry.

    Args:
        key: key of the entry; None for results that are not cached.
        device: device of the returned tensors.
        kinds: types of statistics that a plug-in defines; those of laconic are known.

    Returns:
        The statistics and solutions of each group of layers, by name; None if there is no entry, or a process cannot
            read it.
    """
    stats = None if key is None else ENTRIES.read(key, lambda path: _load(path, device, kinds))
    return stats if processes.all_true(stats is not None) else None


def save_entry(key: str | None, stats: Mapping[str, LayerStats], statistics: bool) -> None:
    """Write an entry, unless it is larger than the cache; only the first process writes.

    Args:
        key: key of the entry; None for results that are not cached.
        stats: statistics and solutions of each group of layers, by name.
        statistics: write the statistics as well as the solutions. Without them, nothing is written unless every group
            has a solution.
    """
    if (
        key is None
        or not processes.is_rank_zero()
        or not (statistics or all(group.solutions for group in stats.values()))
    ):
        return
    table = _TensorTable()
    contents = {name: _describe(group, statistics, table) for name, group in stats.items()}
    tensors = table.tensors
    if not tensors:
        return

    def save(path: Path) -> None:
        # safetensors refuses tensors that share memory.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        save_file(copies, path, {"contents": json.dumps(contents)})

    ENTRIES.write(key, save, sum(tensor.nbytes for tensor in tensors.values()))


def _load(path: Path, device: torch.device, kinds: Iterable[type[Statistic]]) -> dict[str, LayerStats]:
    by_name = {_full_name(kind): kind for kind in (*STATISTICS, *kinds)}
    with safe_open(path, "pt", device=str(device)) as file:
        contents = json.loads(file.metadata()["contents"])
        return {name: _restore(lists, file.get_tensor, by_name) for name, lists in contents.items()}


class _TensorTable:
    """Tensors by number; a tensor that several matrices share is in the table, and in the file, once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._numbers: dict[int, str] = {}

    def add(self, tensor: Tensor) -> str:
        """Add a tensor unless it is in the table, and return its number."""
        # The table keeps the tensor alive, so no other one gets its id.
        number = self._numbers.setdefault(id(tensor), str(len(self.tensors)))
        self.tensors[number] = tensor
        return number


def _describe(stats: LayerStats, statistics: bool, table: _TensorTable) -> dict[str, object]:
    """Add the tensors of `stats` to `table`, and return a JSON description that refers to them by number."""
    solutions = [[name, [table.add(part) for part in parts]] for name, parts in stats.solutions.items()]
    collected = [
        [_full_name(type(statistic)), table.add(statistic.total), statistic.count] for statistic in stats if statistics
    ]
    return {"solutions": solutions, "statistics": collected, "routed": stats.token_count}


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _restore(
    lists: Mapping[str, Any], tensor: Callable[[str], Tensor], kinds: Mapping[str, type[Statistic]]
) -> LayerStats:
    collected = (
        kinds[str(name)].from_total(tensor(str(key)), float(str(count))) for name, key, count in lists["statistics"]
    )
    stats = LayerStats(collected, token_count=lists["routed"])
    for name, parts in lists["solutions"]:
        stats.solutions[str(name)] = tuple(tensor(str(key)) for key in list(parts))
    return stats
