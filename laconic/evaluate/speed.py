"""Time of a forward pass: warmed up, repeated, on a fixed number of threads.

The pass has random tokens and no padding; each row ends with the end token, where the model has one. A causal model
reads a whole prompt (no cache); an encoder-decoder reads as many target tokens as source tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from laconic.calibrate.batching import positions
from laconic.evaluate.judging import evaluating
from laconic.model import Batch, LanguageModel, Task, first_token

WARM_UP = 3
RUNS = 30
FEWEST_RUNS = 5
LENT_PADDING = 0
"""The pad token of a model without one; no random batch of it has this token."""
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
    config = lm.model.config.get_text_config()
    padding = LENT_PADDING if config.pad_token_id is None else config.pad_token_id
    end = config.eos_token_id
    # No model may take a random token for padding or for the end.
    words = [token for token in range(config.vocab_size) if token not in (padding, end)]
    ids = torch.tensor(words)[torch.randint(len(words), (batch, length), generator=generator)]
    if isinstance(end, int) and end != padding:
        # The classifiers among the encoder-decoders read their answer at the one end of each row.
        ids[:, -1] = end
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = first_token(ids)
    if lm.task is Task.SEQ2SEQ or (lm.task is Task.EMBEDDING and config.is_encoder_decoder):
        inputs["decoder_input_ids"] = ids
    return {name: tensor.to(lm.device) for name, tensor in inputs.items()}


def forward(lm: LanguageModel, inputs: Batch) -> None:
    """One pass over a random batch, without a cache for tokens to come."""
    caching = {"use_cache": False} if lm.task in (Task.CAUSAL, Task.SEQ2SEQ) else {}
    with _lent_padding(lm):
        lm.model(**inputs, **caching)


@contextmanager
def _lent_padding(lm: LanguageModel) -> Iterator[None]:
    """A pad token for a classifier without one, which else refuses more than one row; afterwards as it was."""
    config = lm.model.config.get_text_config()
    if lm.task not in (Task.CLASSIFICATION, Task.REGRESSION) or config.pad_token_id is not None:
        yield
        return
    config.pad_token_id = LENT_PADDING
    try:
        yield
    finally:
        config.pad_token_id = None


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
