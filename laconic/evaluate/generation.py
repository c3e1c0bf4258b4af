"""Time text generation with a key-value cache: processing the prompt (prefill), and each token after it (decode).

Decoding is greedy, from a prompt of random tokens without padding. It does not stop at an end token, so that all models
generate the same number of tokens. For an encoder-decoder, the prefill is the encoder and the first decoder step.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from laconic.calibrate.batching import positions
from laconic.calibrate.passes import evaluating, now, random_batch
from laconic.evaluate.timing import MAX_SECONDS, Quartiles
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.model.predictions import check_named, report_run_errors
from laconic.model.tokens import special_token_ids, target_vocabulary_size
from laconic.progress import Track, silent

NEW_TOKENS = 32
"""The number of tokens to generate."""
MIN_TOKENS = 2
"""The least number of new tokens: the first is computed in the prefill, the others in decode steps."""
RUNS = 5
MIN_RUNS = 2


@dataclass(frozen=True)
class Generation:
    """Time of generating text.

    Args:
        batch: the number of rows in the batch.
        prompt: the number of tokens in the prompt of each row.
        new: the number of generated tokens per row.
        prefill: seconds until the first new token.
        step: seconds of each further step, which generates one token in each row.
        runs: the number of repetitions.
    """

    batch: int
    prompt: int
    new: int
    prefill: Quartiles
    step: Quartiles
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Seconds, and tokens per second by the median."""
        return {
            "batch": self.batch,
            "prompt": self.prompt,
            "new": self.new,
            "runs": self.runs,
            "prefill": self.prefill.to_json(),
            "prefill_tokens_per_second": self.batch * self.prompt / self.prefill.median,
            "step": self.step.to_json(),
            "decode_tokens_per_second": self.batch / self.step.median,
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
    longest = positions(lm)
    if not generates_text(lm) or (longest is not None and longest < MIN_TOKENS):
        return None
    new = new if longest is None else min(new, max(MIN_TOKENS, longest // 2))
    prompt = length if longest is None or lm.task is ModelTask.SEQ2SEQ else min(length, max(1, longest - new))
    inputs = random_batch(lm, batch, prompt)
    if not _has_cache(lm, inputs):
        return None
    prefills: list[float] = []
    steps: list[float] = []
    with evaluating(lm), torch.inference_mode():
        tokens = track(range(new), f"Warming up for writing after {batch} × {prompt} tokens")
        warm = sum(seconds for _, seconds in zip(tokens, _token_seconds(lm, inputs, new), strict=True))
        fitting = math.ceil(MAX_SECONDS / max(warm, 1e-9))
        for _ in track(range(min(RUNS, max(MIN_RUNS, fitting))), f"Writing after {batch} × {prompt} tokens"):
            first, *others = _token_seconds(lm, inputs, new)
            prefills.append(first)
            steps.extend(others)
            if sum(prefills) + sum(steps) >= MAX_SECONDS and len(prefills) >= MIN_RUNS:
                break
    read = inputs["input_ids"].shape[1]
    return Generation(batch, read, new, Quartiles.of(prefills), Quartiles.of(steps), len(prefills))


def generates_text(lm: LanguageModel) -> bool:
    """Whether the model generates text: a causal model or an encoder-decoder."""
    return lm.task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ)


def _has_cache(lm: LanguageModel, inputs: Batch) -> bool:
    """Whether the model returns a key-value cache; recurrent models have another kind of state."""
    with evaluating(lm), torch.inference_mode():
        return _step(lm, *_prompt_inputs(lm, inputs)).get("past_key_values") is not None


def _token_seconds(lm: LanguageModel, inputs: Batch, new: int) -> Iterator[float]:
    """Yield the seconds for the first token, then for each further one."""
    start = now(lm.device)
    step_inputs, token = _prompt_inputs(lm, inputs)
    cache = None
    for _ in range(new):
        output = _step(lm, step_inputs, token, cache)
        cache, token = output["past_key_values"], output["logits"][:, -1:].argmax(-1)
        if lm.task is ModelTask.CAUSAL:
            step_inputs["attention_mask"] = torch.cat((step_inputs["attention_mask"], torch.ones_like(token)), dim=1)
        end = now(lm.device)
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
