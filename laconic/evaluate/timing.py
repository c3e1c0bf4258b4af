"""Measure the seconds of forward passes and of text generation: after a warm-up, repeatedly.

Text is generated with a key-value cache, greedily, from a prompt of random tokens without padding. It does not stop at
an end token, so that all models generate the same number of tokens. The prefill processes the prompt, and each decode
step one token after it. For an encoder-decoder, the prefill is the encoder and the first decoder step.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from laconic.calibrate.batching import max_positions
from laconic.calibrate.passes import evaluating, forward, random_batch, read_clock, time_call
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.model.predictions import check_named, report_run_errors
from laconic.model.tokens import special_token_ids, target_vocabulary_size
from laconic.progress import Track, silent

WARM_UP_RUNS = 3
RUNS = 30
MIN_RUNS = 5
MAX_SECONDS = 30.0
"""Seconds after which timing stops, if the model has run at least `MIN_RUNS` times."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of repeated measurements.

    Args:
        median: seconds.
        lower_quartile: seconds.
        upper_quartile: seconds.

    Example:
        >>> Quartiles.of([1.0, 2.0, 3.0])
        Quartiles(median=2.0, lower_quartile=1.5, upper_quartile=2.5)
    """

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quartiles":
        lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper)


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Args:
        batch: the number of rows.
        length: the number of tokens in a row.
        median: seconds.
        lower_quartile: seconds.
        upper_quartile: seconds.
        runs: the number of timed passes.
        choices: the number of choices in a row; each has `length` tokens. 1 except for multiple choice.
    """

    batch: int
    length: int
    median: float
    lower_quartile: float
    upper_quartile: float
    runs: int
    choices: int = 1

    @property
    def tokens(self) -> int:
        """The number of tokens of a pass."""
        return self.batch * self.choices * self.length

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.tokens / self.median

    def to_json(self) -> dict[str, Any]:
        """The fields, with `choices` only if a row has several, and the throughput."""
        fields = asdict(self)
        if self.choices == 1:
            del fields["choices"]
        return {**fields, "throughput": self.throughput}


def latency(
    lm: LanguageModel,
    batch: int = 8,
    length: int = 128,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    track: Track = silent,
) -> Latency:
    """Time a forward pass on random tokens, after a warm-up.

    Args:
        lm: the model.
        batch: the number of rows.
        length: the number of tokens in a row; at most the maximum of the model.
        threads: the number of CPU threads of torch; None does not change it.
        runs: the largest number of timed passes. After 30 seconds in total timing stops, but not before five passes.
        track: reports progress.
    """
    inputs = random_batch(lm, batch, length)
    rows = f"{batch} × {length} tokens"
    with evaluating(lm), fixed_threads(threads), torch.inference_mode():

        def run() -> list[float]:
            return [time_call(lambda: forward(lm, inputs), lm.device)]

        warm_up = [run() for _ in track(range(WARM_UP_RUNS), f"Warming up for {rows}")]
        seconds = repeat(run, min(warm_up), (min(runs, MIN_RUNS), runs), track, f"Timing {rows}")
    ids = inputs["input_ids"]
    quartiles = asdict(Quartiles.of([second for (second,) in seconds]))
    choices = ids[0].numel() // ids.shape[-1]
    return Latency(batch, ids.shape[-1], **quartiles, runs=len(seconds), choices=choices)


def repeat(
    run: Callable[[], list[float]], warm_up: list[float], runs: tuple[int, int], track: Track, label: str
) -> list[list[float]]:
    """Repeat a measurement until it has taken `MAX_SECONDS`.

    Args:
        run: measures once, and returns seconds.
        warm_up: the seconds of a run, to estimate how many runs fit into the time, for the progress bar.
        runs: the least and the largest number of runs.
        track: reports progress.
        label: a description of the work, for progress.
    """
    least, most = runs
    fitting = math.ceil(MAX_SECONDS / max(sum(warm_up), 1e-9))
    seconds: list[list[float]] = []
    for _ in track(range(min(most, max(least, fitting))), label):
        seconds.append(run())
        if sum(map(sum, seconds)) >= MAX_SECONDS and len(seconds) >= least:
            break
    return seconds


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """A context in which torch uses a fixed number of threads of the CPU.

    Args:
        threads: the number of threads; None does not change it.

    Example:
        >>> with fixed_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


NEW_TOKENS = 32
"""The number of tokens to generate."""
MIN_TOKENS = 2
"""The least number of new tokens: the first is computed in the prefill, the others in decode steps."""
GENERATION_RUNS = 2, 5
"""The least and the largest number of timed repetitions of text generation."""


@dataclass(frozen=True)
class Generation:
    """Time of generating text.

    Args:
        batch: the number of rows in the batch.
        prompt: the number of tokens in the prompt of each row.
        new: the number of generated tokens per row.
        prefill: seconds until the first new token.
        step: seconds of each further step, which generates one token in each row; None if only the prompt was timed.
        runs: the number of repetitions.
    """

    batch: int
    prompt: int
    new: int
    prefill: Quartiles
    step: Quartiles | None
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Seconds, and tokens per second by the median."""
        decode = None if self.step is None else self.batch / self.step.median
        return {
            "batch": self.batch,
            "prompt": self.prompt,
            "new": self.new,
            "runs": self.runs,
            "prefill": asdict(self.prefill),
            "prefill_tokens_per_second": self.batch * self.prompt / self.prefill.median,
            "step": None if self.step is None else asdict(self.step),
            "decode_tokens_per_second": decode,
        }


def measure_generation(
    lm: LanguageModel, batch: int, length: int, *, new: int = NEW_TOKENS, track: Track = silent
) -> Generation | None:
    """Time text generation after a prompt of random tokens.

    Args:
        lm: the model.
        batch: the number of rows in the batch.
        length: the number of tokens in the prompt. It is reduced if the context has no room for the new tokens.
        new: the number of tokens to generate; at most half of the model's positions.
        track: reports progress.

    Returns:
        The times; None for a model that does not generate text or has no key-value cache.
    """
    longest = max_positions(lm)
    if not generates_text(lm) or (longest is not None and longest < MIN_TOKENS):
        return None
    new = new if longest is None else min(new, max(MIN_TOKENS, longest // 2))
    prompt = length if longest is None or lm.task is ModelTask.SEQ2SEQ else min(length, max(1, longest - new))
    inputs = random_batch(lm, batch, prompt)
    if not _has_cache(lm, inputs):
        return None
    rows = f"{batch} × {prompt} tokens"
    with evaluating(lm), torch.inference_mode():
        tokens = track(range(new), f"Warming up generation after {rows}")
        warm_up = [seconds for _, seconds in zip(tokens, _token_seconds(lm, inputs, new), strict=True)]
        seconds = repeat(
            lambda: list(_token_seconds(lm, inputs, new)), warm_up, GENERATION_RUNS, track, f"Generating after {rows}"
        )
    prefill = Quartiles.of([first for first, *_ in seconds])
    step = Quartiles.of([step for _, *steps in seconds for step in steps])
    return Generation(batch, inputs["input_ids"].shape[1], new, prefill, step, len(seconds))


def generates_text(lm: LanguageModel) -> bool:
    """Whether the model generates text: a causal model or an encoder-decoder."""
    return lm.task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ)


def _has_cache(lm: LanguageModel, inputs: Batch) -> bool:
    """Whether the model returns a key-value cache; recurrent models have another kind of state."""
    with evaluating(lm), torch.inference_mode():
        return _step(lm, *_prompt_inputs(lm, inputs)).get("past_key_values") is not None


def _token_seconds(lm: LanguageModel, inputs: Batch, new: int) -> Iterator[float]:
    """Yield the seconds for the first token, then for each further one."""
    start = read_clock(lm.device)
    step_inputs, token = _prompt_inputs(lm, inputs)
    cache = None
    for _ in range(new):
        output = _step(lm, step_inputs, token, cache)
        cache, token = output["past_key_values"], output["logits"][:, -1:].argmax(-1)
        if lm.task is ModelTask.CAUSAL:
            step_inputs["attention_mask"] = torch.cat((step_inputs["attention_mask"], torch.ones_like(token)), dim=1)
        end = read_clock(lm.device)
        yield end - start
        start = end


def _step(lm: LanguageModel, inputs: Mapping[str, Any], token: Tensor, cache: Any = None) -> ModelOutput:
    """Run the model on the tokens that follow the cached ones."""
    name = "input_ids" if lm.task is ModelTask.CAUSAL else "decoder_input_ids"
    with report_run_errors(lm, token):
        return check_named(lm, lm.model(**inputs, **{name: token}, past_key_values=cache, use_cache=True))


def _prompt_inputs(lm: LanguageModel, inputs: Batch) -> tuple[dict[str, Any], Tensor]:
    """The inputs of every step, and the tokens that the first step reads."""
    source = {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"}
    ids = source.pop("input_ids")
    if lm.task is ModelTask.CAUSAL:
        return dict(source), ids
    encoder: Any = lm.model.get_encoder()
    with report_run_errors(lm, ids):
        states = encoder(input_ids=ids, **source)
    # If the configuration has no valid start token, use any other one: it takes the same time.
    vocabulary = range(target_vocabulary_size(lm.model))
    start = next(
        (token for token in special_token_ids(lm.model.config, "decoder_start_token_id") if token in vocabulary), 0
    )
    first = torch.full_like(ids[:, :1], start)
    return {"encoder_outputs": states, "attention_mask": source["attention_mask"]}, first
