"""A disk cache for the scores of finished tasks, so that an interrupted evaluation continues with the next task.

An entry is one JSON file. Its name is a hash of everything that the scores depend on: weights, formats, configuration
and tokenizers of the model, the task and its rows, versions, and the code of laconic. If one of these changes, the name
changes, so that no outdated entry is used. If an entry is missing, damaged or cannot be written, the task is computed
again.
"""

import hashlib
import json
import platform
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
from laconic.model.loans_on_call import find_parts
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


class ScoreCache:
    """The cached scores of one model.

    Args:
        lm: the model.

    Raises:
        UserError: `$LACONIC_CACHE_GB` is not a valid size.
    """

    def __init__(self, lm: LanguageModel) -> None:
        cache_limit()
        self._lm, self._model = lm, fingerprint(lm)
        self._layers = {type(part) for part in lm.model.modules()}

    def evaluate(self, task: EvalTask, corpus: Corpus, track: Track) -> TaskResult:
        """The scores of the model on some rows: cached ones, if any, else computed and cached."""
        key = self._key(task, corpus)
        result = None if key is None else ENTRIES.read(key, lambda path: _load(path, task))
        if result is None:
            result = task.evaluate(self._lm, corpus, track)
            self.write(task, corpus, result)
        return result

    def write(self, task: EvalTask, corpus: Corpus, result: TaskResult) -> None:
        """Cache the scores of a task, if they can be cached."""
        key = self._key(task, corpus)
        if key is not None and task.metrics(result.settings) is not None:
            entry = {
                "shape": list(result.table.shape),
                "table": result.table.ravel().tolist(),
                "settings": dict(result.settings),
                "rows": result.rows,
            }
            ENTRIES.write(key, lambda path: write_json(path, entry))

    def _key(self, task: EvalTask, corpus: Corpus) -> str | None:
        """The name of the entry; None if a part of the code cannot be hashed."""
        classes = hash_classes((type(task), *self._layers))
        if classes is None:
            return None
        code = hash_packages(*PACKAGES)
        parts = [self._model, type(task).__name__, repr(task), repr(corpus), versions(), code, classes]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


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
    hash_tensors(digest, {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta})
    for path in find_parts(model, lm.anatomy, lm.loans):
        with lm.on_loan(path):
            tensors = model.get_submodule(path).state_dict()
            hash_tensors(digest, {f"{path}.{name}": tensor for name, tensor in tensors.items()})
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
