"""Scores of finished tasks, kept on disk: an evaluation that was stopped goes on at the first task that was not done.

An entry is one JSON file, named by a hash of everything that decides the scores: weights, formats, configuration and
tokenizers of the model, the task, its rows, versions, and laconic's own code. Whatever changes, the name does, so that
nothing stale is served; a lost, damaged or unwritable entry costs time and no more.
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
from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.progress import Track
from laconic.store.folder import TOKENIZER_FILE

FOLDER = "judged"
ENTRIES = DiskCache(FOLDER, ".json")
PACKAGES = ("numerics", "formats", "model", "calibrate", "store", "evaluate")
"""The packages of laconic that scores come from."""


def versions() -> dict[str, str]:
    """Of what figures depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def keeping(lm: LanguageModel) -> Callable[[EvalTask, Corpus, Track], TaskResult]:
    """Judges `lm` as each judge does, unless the scores of the same model on the same rows are kept; then keeps them.

    Raises:
        UserError: $LACONIC_CACHE_GB is no size.
    """
    cache_limit()
    model = fingerprint(lm)
    layers = {type(part) for part in lm.model.modules()}

    def judged(judge: EvalTask, corpus: Corpus, track: Track) -> TaskResult:
        classes = hash_classes((type(judge), *layers))
        if classes is None:
            return judge.evaluate(lm, corpus, track)
        key = _key(model, judge, corpus, classes)
        known = ENTRIES.read(key, lambda path: _load(path, judge))
        if known is not None:
            return known
        found = judge.evaluate(lm, corpus, track)
        if judge.metrics(found.settings) is not None:
            ENTRIES.write(key, lambda path: write_json(path, _entry(found)))
        return found

    return judged


def fingerprint(lm: LanguageModel) -> str:
    """A hash of what `lm` computes: numbers and their formats, configuration, names of classes, tokenizers."""
    model = lm.model
    hashed = hashlib.blake2b(digest_size=16)
    formats = [
        (name, type(part).__name__, part.spec()) for name, part in model.named_modules() if isinstance(part, Format)
    ]
    said = [type(model).__name__, model.config.to_json_string(), str(lm.device.type), str(lm.dtype), lm.task, formats]
    said.append(lm.label_order)
    hashed.update(json.dumps(said, default=str).encode())
    hash_tensors(hashed, model.state_dict())
    hashed.update(b"" if lm.pipeline is None else lm.pipeline.to_bytes())
    for tokenizer in (lm.tokenizer, lm.target_tokenizer):
        if tokenizer is not None:
            with TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                for file in sorted(Path(folder).rglob("*")):
                    hashed.update(file.name.encode() + _lasting(file) if file.is_file() else b"")
    return hashed.hexdigest()


def _lasting(file: Path) -> bytes:
    """What a tokenizer's file says but for how the last call cut and padded texts, which every call says anew."""
    if file.name != TOKENIZER_FILE:
        return file.read_bytes()
    return json.dumps({**json.loads(file.read_bytes()), "truncation": None, "padding": None}).encode()


def _key(model: str, judge: EvalTask, corpus: Corpus, classes: str) -> str:
    parts = [model, type(judge).__name__, repr(judge), repr(corpus), versions(), hash_packages(*PACKAGES), classes]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _load(path: Path, judge: EvalTask) -> TaskResult:
    entry: dict[str, Any] = json.loads(path.read_text())
    table = np.array(entry["table"], dtype=np.float64).reshape(entry["shape"])
    settings, rows = entry["settings"], entry["rows"]
    metrics = judge.metrics(settings)
    if metrics is None:
        raise ValueError("The task has no metrics for these settings.")
    return TaskResult(table, metrics, settings, None if rows is None else tuple(rows))


def _entry(judged: TaskResult) -> dict[str, Any]:
    return {
        "shape": list(judged.table.shape),
        "table": judged.table.ravel().tolist(),
        "settings": dict(judged.settings),
        "rows": judged.rows,
    }
