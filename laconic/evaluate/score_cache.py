"""A disk cache for the scores of finished tasks, so that an interrupted evaluation continues with the next task.

An entry is one JSON file. Its name is a hash of everything that the scores depend on: weights, formats, configuration
and tokenizers of the model, the task and its rows, versions, and the code of laconic. If one of these changes, the name
changes, so that no outdated entry is used. If an entry is missing, damaged or cannot be written, the task is computed
again.
"""

import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers

from laconic.cache import DiskCache, cache_limit
from laconic.calibrate.corpus import Corpus
from laconic.evaluate.eval_task import EvalTask, TaskResult
from laconic.files import write_json
from laconic.fingerprint import hash_classes, hash_packages, hash_tensors
from laconic.formats import ExpertStack, Format
from laconic.model import LanguageModel
from laconic.progress import Track
from laconic.store.folder import TOKENIZER_FILE

FOLDER = "judged"
ENTRIES = DiskCache(FOLDER, ".json")
PACKAGES = ("numerics", "formats", "model", "calibrate", "store", "evaluate")
"""The packages of laconic whose code scores depend on."""


def versions() -> dict[str, str]:
    """The versions of the libraries that scores depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def caching_evaluator(lm: LanguageModel) -> Callable[[EvalTask, Corpus, Track], TaskResult]:
    """Make a function that evaluates a task on `lm`, and reads and writes the cache.

    Args:
        lm: the model.

    Returns:
        A function of task, rows and progress. It returns cached scores of the same model on the same rows, if any.

    Raises:
        UserError: `$LACONIC_CACHE_GB` is not a valid size.
    """
    cache_limit()
    model = fingerprint(lm)
    layers = {type(part) for part in lm.model.modules()}

    def evaluate(task: EvalTask, corpus: Corpus, track: Track) -> TaskResult:
        classes = hash_classes((type(task), *layers))
        if classes is None:
            return task.evaluate(lm, corpus, track)
        code = hash_packages(*PACKAGES)
        parts = [model, type(task).__name__, repr(task), repr(corpus), versions(), code, classes]
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        result = ENTRIES.read(key, lambda path: _load(path, task))
        if result is None:
            result = task.evaluate(lm, corpus, track)
            if task.metrics(result.settings) is not None:
                entry = {
                    "shape": list(result.table.shape),
                    "table": result.table.ravel().tolist(),
                    "settings": dict(result.settings),
                    "rows": result.rows,
                }
                ENTRIES.write(key, lambda path: write_json(path, entry))
        return result

    return evaluate


def fingerprint(lm: LanguageModel) -> str:
    """A hash of a model: weights and their formats, configuration, class names and tokenizers."""
    model = lm.model
    digest = hashlib.blake2b(digest_size=16)
    formats = [
        (name, type(part).__name__, part.spec())
        for name, part in model.named_modules()
        if isinstance(part, (Format, ExpertStack))
    ]
    config = model.config.to_json_string()
    parts = [type(model).__name__, config, str(lm.device.type), str(lm.dtype), lm.task, formats, lm.label_order]
    digest.update(json.dumps(parts, default=str).encode())
    hash_tensors(digest, model.state_dict())
    digest.update(b"" if lm.pipeline is None else lm.pipeline.to_bytes())
    for tokenizer in (lm.tokenizer, lm.target_tokenizer):
        if tokenizer is not None:
            with TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                for file in sorted(Path(folder).rglob("*")):
                    digest.update(file.name.encode() + _read_stable(file) if file.is_file() else b"")
    return digest.hexdigest()


def _read_stable(file: Path) -> bytes:
    """The content of a tokenizer file without truncation and padding, which each call of the tokenizer sets anew."""
    if file.name != TOKENIZER_FILE:
        return file.read_bytes()
    return json.dumps({**json.loads(file.read_bytes()), "truncation": None, "padding": None}).encode()


def _load(path: Path, task: EvalTask) -> TaskResult:
    entry: dict[str, Any] = json.loads(path.read_text())
    table = np.array(entry["table"], dtype=np.float64).reshape(entry["shape"])
    settings, rows = entry["settings"], entry["rows"]
    metrics = task.metrics(settings)
    if metrics is None:
        raise ValueError("The task has no metrics for these settings.")
    return TaskResult(table, metrics, settings, None if rows is None else tuple(rows))
