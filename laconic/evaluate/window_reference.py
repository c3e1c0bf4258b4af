"""Compare a causal language model with its original on the windows of a perplexity task, in one pass of each model.

`WindowReference` runs the original once and keeps its last hidden states, so that several models are compared with it,
also in later runs. `compare_in_windows` then runs a model once, and gives the perplexities of both and their distance.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.corpus import Corpus
from laconic.calibrate.row import tokenizer_of
from laconic.evaluate.comparable import check_token_names
from laconic.evaluate.eval_task import TaskResult, tokenizer_name
from laconic.evaluate.fidelity import Fidelity, fidelity_of
from laconic.evaluate.halves import Head, divide
from laconic.evaluate.perplexity import Perplexity
from laconic.evaluate.score_cache import PACKAGES, fingerprint, versions
from laconic.evaluate.state_file import ENTRIES, StateFile, keep_states
from laconic.evaluate.window_scores import score_windows, scored_states
from laconic.evaluate.windows import Windows
from laconic.fingerprint import hash_classes, hash_packages
from laconic.model import LanguageModel
from laconic.progress import Track
from laconic.system import keeping_large_blocks


@dataclass(frozen=True)
class WindowReference:
    """The original as the reference of comparisons: its states in the windows of a task, and its head.

    Args:
        head: the head of the original. The blocks of the original may be gone.
        task: the task.
        corpus: the rows of the task.
        windows: their windows.
        states: the states of the original at the positions that are scored.
    """

    head: Head
    task: Perplexity
    corpus: Corpus
    windows: Windows
    states: StateFile

    def read(self) -> Iterator[Float[Tensor, "n width"]]:
        """The states of each batch of windows in turn."""
        return self.states.read(self.head.lm.device)

    def on_loan(self) -> AbstractContextManager[None]:
        """A context in which `logits` can be computed."""
        return self.head.on_loan()

    def logits(self, states: Float[Tensor, "n width"]) -> Float[Tensor, "n vocabulary"]:
        """The logits of the original."""
        return self.head(states)


def run_original(
    original: LanguageModel, task: Perplexity, corpus: Corpus, *, resume: bool, track: Track
) -> WindowReference | None:
    """Run the original on the windows of a task, and keep its states.

    Args:
        original: the original.
        task: a perplexity task.
        corpus: its rows.
        resume: whether to read the states from the cache, and to write them to it. The model must be fully described by
            its configuration and weights.
        track: shows progress.

    Returns:
        The reference; None if the original cannot be divided into body and head.

    Raises:
        UserError: the task cannot score the model, or the model predicts NaN.
    """
    windows = task.windows(original, corpus)
    halves = divide(original, task.dtype)
    if halves.head is None:
        return None
    key = _key(original, task, windows) if resume else None
    states = None if key is None else ENTRIES.read(key, StateFile.load)
    if states is None:
        batches = windows.batches(original)
        with keeping_large_blocks():
            states = keep_states(scored_states(halves.body, windows, batches, track, f"{task.name}, original"), key)
    return WindowReference(halves.head, task, corpus, windows, states)


def _key(original: LanguageModel, task: Perplexity, windows: Windows) -> str | None:
    """The name of the states in the cache: a hash of what they depend on. None if a class cannot be hashed."""
    classes = hash_classes({type(part) for part in original.model.modules()})
    if classes is None:
        return None
    parts = [fingerprint(original), task.dtype, windows.inputs, versions(), hash_packages(*PACKAGES), classes]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def compare_in_windows(
    lm: LanguageModel, reference: WindowReference, seed: int, track: Track
) -> tuple[TaskResult, TaskResult, Fidelity] | None:
    """Run a model on the windows of a reference.

    Args:
        lm: the compressed model.
        reference: the original.
        seed: the random seed of the intervals.
        track: shows progress.

    Returns:
        The result of the task for `lm` and for the original, and their distance; None if `lm` cannot be divided, or
        reads other tokens in other windows than the original.

    Raises:
        UserError: a token is another one in the tokenizer of the original, or `lm` predicts NaN.
    """
    task, corpus, original = reference.task, reference.corpus, reference.head.lm
    windows = task.windows(lm, corpus)
    if windows.inputs != reference.windows.inputs:
        return None
    halves = divide(lm, task.dtype)
    if halves.head is None:
        return None
    check_token_names(lm, original, {token for row in windows.rows for token in row.input_ids})
    scores = score_windows(lm, halves, windows, track, "fidelity", reference)
    results = [
        task.result(tokenizer_of(model), corpus, windows, nats, scores.tokens)
        for model, nats in ((lm, scores.nats), (original, scores.reference_nats))
    ]
    scored = scores.tokens > 0
    if scores.states.shape == scores.reference_states.shape:
        cosine = functional.cosine_similarity(scores.states, scores.reference_states, dim=-1)
    else:
        cosine = torch.full_like(scores.kl, torch.nan)
    table = torch.column_stack((scores.kl, scores.same, cosine, scores.tokens))[scored].numpy()
    fidelity = fidelity_of(table, corpus, seed=seed, context=windows.context, tokenizer=tokenizer_name(original))
    fidelity = replace(fidelity, stride=windows.stride, dtype=task.dtype)
    return results[0], results[1], fidelity
