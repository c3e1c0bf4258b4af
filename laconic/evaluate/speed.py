"""Time of a forward pass: warmed up, repeated, on a fixed number of threads.

The pass has random tokens and no padding. A causal model reads a whole prompt (no cache); an encoder-decoder reads as
many target tokens as source tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from laconic.calibrate.batching import positions
from laconic.evaluate.judging import evaluating
from laconic.model import Batch, LanguageModel, Task

WARM_UP = 3
RUNS = 30
FEWEST_RUNS = 5
PATIENCE = 30.0
"""Seconds after which a slow model is timed no more, once it has run often enough for a median."""


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass of `batch` rows of `length` tokens: median and quartiles over `runs`."""

    batch: int
    length: int
    median: float
    lower_quartile: float
    upper_quartile: float
    runs: int

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.batch * self.length / self.median


def latency(
    lm: LanguageModel, batch: int = 8, length: int = 128, *, threads: int | None = None, runs: int = RUNS
) -> Latency:
    """Time `lm` on random tokens; `threads` as torch has it when None. Slow models are run fewer times."""
    inputs = random_batch(lm, batch, length)
    seconds: list[float] = []
    with evaluating(lm), fixed_threads(threads), torch.inference_mode():
        for _ in range(WARM_UP):
            _timed(lm, inputs)
        while len(seconds) < runs and (sum(seconds) < PATIENCE or len(seconds) < FEWEST_RUNS):
            seconds.append(_timed(lm, inputs))
    lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Latency(batch, inputs["input_ids"].shape[1], median, lower, upper, len(seconds))


def random_batch(lm: LanguageModel, batch: int, length: int, seed: int = 0) -> Batch:
    """`batch` rows of random tokens on the model's device, `length` long or as long as it can read."""
    generator = torch.Generator().manual_seed(seed)
    length = min(length, positions(lm) or length)
    vocabulary = lm.model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (batch, length), generator=generator)
    padding = lm.model.config.pad_token_id
    if padding is not None:
        # No model may take a random token for padding.
        ids[ids == padding] = (padding + 1) % vocabulary
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if lm.task is Task.SEQ2SEQ:
        inputs["decoder_input_ids"] = ids
    return {name: tensor.to(lm.device) for name, tensor in inputs.items()}


def forward(lm: LanguageModel, inputs: Batch) -> None:
    """One pass, without a cache for tokens to come."""
    caching = {"use_cache": False} if lm.task in (Task.CAUSAL, Task.SEQ2SEQ) else {}
    lm.model(**inputs, **caching)


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """This many threads for the time being."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(lm: LanguageModel, inputs: Batch) -> float:
    on_gpu = lm.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(lm.device)
    start = perf_counter()
    forward(lm, inputs)
    if on_gpu:
        # Kernels run after the call returns.
        torch.cuda.synchronize(lm.device)
    return perf_counter() - start
