"""Scores of finished tasks, kept on disk: an evaluation that was stopped goes on at the first task that was not done.

An entry is one JSON file, named by a hash of everything that decides the scores: weights, formats, configuration and
tokenizers of the model, the task, its rows, versions, and laconic's own code. Whatever changes, the name does, so that
nothing stale is served; a lost, damaged or unwritable entry costs time and no more.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers

from laconic.cache import cache_folder, cache_limit
from laconic.calibrate.corpus import Corpus
from laconic.evaluate.eval_task import EvalTask, TaskResult
from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.progress import Track
from laconic.recover.checkpoints import write_json
from laconic.store.folder import TOKENIZER_FILE

FOLDER = "judged"


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
    limit = cache_limit()
    model = fingerprint(lm)

    def judged(judge: EvalTask, corpus: Corpus, track: Track) -> TaskResult:
        path = cache_folder() / FOLDER / f"{_key(model, judge, corpus)}.json"
        kept = _recall(path, judge)
        if kept is not None:
            return kept
        found = judge.evaluate(lm, corpus, track)
        if limit and judge.metrics(found.settings) is not None:
            _keep(path, found, limit)
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
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
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


def _key(model: str, judge: EvalTask, corpus: Corpus) -> str:
    said = [model, type(judge).__name__, repr(judge), repr(corpus), versions(), _code()]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _recall(path: Path, judge: EvalTask) -> TaskResult | None:
    try:
        entry: dict[str, Any] = json.loads(path.read_text())
        table = np.array(entry["table"], dtype=np.float64).reshape(entry["shape"])
        settings, rows = entry["settings"], entry["rows"]
        metrics = judge.metrics(settings)
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if metrics is None else TaskResult(table, metrics, settings, None if rows is None else tuple(rows))


def _keep(path: Path, judged: TaskResult, limit: int) -> None:
    entry = {
        "shape": list(judged.table.shape),
        "table": judged.table.ravel().tolist(),
        "settings": dict(judged.settings),
        "rows": judged.rows,
    }
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, entry)
        _make_room(path.parent, limit)


def _make_room(folder: Path, limit: int) -> None:
    """Remove the entries that were used least recently until the others take at most `limit` bytes."""
    total = 0
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        total += path.stat().st_size
        if total > limit:
            path.unlink(missing_ok=True)


@cache
def _code() -> str:
    """A hash of the modules that scores come from: after a change of any, they are measured anew."""
    root = Path(__file__).parents[1]
    parts = ("numerics", "formats", "model", "calibrate", "store", "evaluate")
    files = sorted(file for part in parts for file in (root / part).rglob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=16).hexdigest()
