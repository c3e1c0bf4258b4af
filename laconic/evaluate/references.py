"""Keeps what several evaluations need of one original, so that the original runs once."""

import weakref
from dataclasses import dataclass
from typing import Any

from laconic.calibrate.corpus import Corpus
from laconic.evaluate.fidelity import Reference
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.window_reference import WindowReference, run_original
from laconic.model import LanguageModel
from laconic.progress import Track, silent


@dataclass(frozen=True)
class _Windows:
    """A `WindowReference` with what it was made for. It does not keep the original in memory."""

    model: "weakref.ref[Any]"
    task: Perplexity
    corpus: Corpus
    reference: WindowReference | None


class ReferenceCache:
    """Keeps the last `Reference` and the last `WindowReference`.

    Originals are compared by identity; their weights must not change between calls.
    """

    def __init__(self) -> None:
        self._last: Reference | None = None
        self._windows: _Windows | None = None

    def get(self, original: LanguageModel, corpus: Corpus, seed: int = 0) -> Reference:
        """The reference for an original and rows; the kept one, if the arguments are the same as in the last call.

        Args:
            original: the original model.
            corpus: rows of text.
            seed: the random seed of masked positions.
        """
        last = self._last
        if last is None or last.original is not original or (last.corpus, last.seed) != (corpus, seed):
            last = self._last = Reference(original, corpus, seed=seed)
        return last

    def in_windows(
        self, original: LanguageModel, task: Perplexity, corpus: Corpus, *, resume: bool, track: Track = silent
    ) -> WindowReference | None:
        """The reference for an original and the windows of a task; the kept one, if the arguments are the same.

        Args:
            original: the original model.
            task: the task.
            corpus: its rows.
            resume: as in `run_original`.
            track: reports progress.

        Returns:
            As `run_original`.
        """
        last = self._windows
        if last is None or last.model() is not original.model or (last.task, last.corpus) != (task, corpus):
            found = run_original(original, task, corpus, resume=resume, track=track)
            last = self._windows = _Windows(weakref.ref(original.model), task, corpus, found)
        return last.reference
