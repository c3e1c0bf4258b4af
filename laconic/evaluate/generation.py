"""Tokens per second when a model writes: reading the prompt (prefill) and each token after it (decode), with a cache.

Greedy, from a prompt of random tokens without padding; an end token ends nothing, so that every model writes as much.
An encoder-decoder's prefill is its encoder and the first step of its decoder.
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
from laconic.evaluate.speed import PATIENCE, Quartiles
from laconic.model import Batch, LanguageModel, Task
from laconic.model.predictions import check_named, report_run_errors
from laconic.model.tokens import special_token_ids, target_vocabulary_size
from laconic.progress import Track, silent

NEW = 32
"""Tokens that are written."""
FEWEST_TOKENS = 2
"""The first of them is that of the prompt, and the others are steps."""
RUNS = 5
FEWEST_RUNS = 2


@dataclass(frozen=True)
class Generation:
    """`batch` rows of `prompt` tokens and `new` ones after them.

    prefill: seconds until the first new token.
    step:    seconds of each further one, of all rows at once.
    """

    batch: int
    prompt: int
    new: int
    prefill: Quartiles
    step: Quartiles
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Seconds, and tokens a second of the median."""
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


def generation(
    lm: LanguageModel, batch: int, length: int, *, new: int = NEW, track: Track = silent
) -> Generation | None:
    """Time `lm` writing `new` tokens after `length` of them, or as many as it has positions for.

    None for a model that writes nothing, or that keeps no keys and values of what it has read.
    """
    longest = positions(lm)
    if not writes(lm) or (longest is not None and longest < FEWEST_TOKENS):
        return None
    new = new if longest is None else min(new, max(FEWEST_TOKENS, longest // 2))
    prompt = length if longest is None or lm.task is Task.SEQ2SEQ else min(length, max(1, longest - new))
    inputs = random_batch(lm, batch, prompt)
    if not _keeps_cache(lm, inputs):
        return None
    prefills: list[float] = []
    steps: list[float] = []
    with evaluating(lm), torch.inference_mode():
        tokens = track(range(new), f"Warming up for writing after {batch} × {prompt} tokens")
        warm = sum(seconds for _, seconds in zip(tokens, _seconds(lm, inputs, new), strict=True))
        fitting = math.ceil(PATIENCE / max(warm, 1e-9))
        for _ in track(range(min(RUNS, max(FEWEST_RUNS, fitting))), f"Writing after {batch} × {prompt} tokens"):
            first, *others = _seconds(lm, inputs, new)
            prefills.append(first)
            steps.extend(others)
            if sum(prefills) + sum(steps) >= PATIENCE and len(prefills) >= FEWEST_RUNS:
                break
    read = inputs["input_ids"].shape[1]
    return Generation(batch, read, new, Quartiles.of(prefills), Quartiles.of(steps), len(prefills))


def writes(lm: LanguageModel) -> bool:
    """Whether it is a model that writes, token by token."""
    return lm.task in (Task.CAUSAL, Task.SEQ2SEQ)


def _keeps_cache(lm: LanguageModel, inputs: Batch) -> bool:
    """Whether each step can go on from the keys and values of those before; recurrent models keep something else."""
    with evaluating(lm), torch.inference_mode():
        return _step(lm, *_prompted(lm, inputs)).get("past_key_values") is not None


def _seconds(lm: LanguageModel, inputs: Batch, new: int) -> Iterator[float]:
    """Of the first token, and of each one after it."""
    start = now(lm.device)
    known, token = _prompted(lm, inputs)
    cache = None
    for _ in range(new):
        output = _step(lm, known, token, cache)
        cache, token = output["past_key_values"], output["logits"][:, -1:].argmax(-1)
        if lm.task is Task.CAUSAL:
            known["attention_mask"] = torch.cat((known["attention_mask"], torch.ones_like(token)), dim=1)
        end = now(lm.device)
        yield end - start
        start = end


def _step(lm: LanguageModel, known: Mapping[str, Any], token: Tensor, cache: Any = None) -> ModelOutput:
    """What the model gives for tokens that follow those in `cache`."""
    name = "input_ids" if lm.task is Task.CAUSAL else "decoder_input_ids"
    with report_run_errors(lm, token):
        return check_named(lm, lm.model(**known, **{name: token}, past_key_values=cache, use_cache=True))


def _prompted(lm: LanguageModel, inputs: Batch) -> tuple[dict[str, Any], Tensor]:
    """What every step is given, and the tokens that the first one reads."""
    source = {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"}
    ids = source.pop("input_ids")
    if lm.task is Task.CAUSAL:
        return dict(source), ids
    encoder: Any = lm.model.get_encoder()
    with report_run_errors(lm, ids):
        states = encoder(input_ids=ids, **source)
    # Of a model that does not say how it begins, or says what it does not know, any token takes as long.
    known = range(target_vocabulary_size(lm.model))
    start = next((token for token in special_token_ids(lm.model.config, "decoder_start_token_id") if token in known), 0)
    first = torch.full_like(ids[:, :1], start)
    return {"encoder_outputs": states, "attention_mask": source["attention_mask"]}, first
