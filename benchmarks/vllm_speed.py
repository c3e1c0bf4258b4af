"""The speed of models in vLLM, and of the original in eager transformers, on one thread and in turns.

All models are loaded before anything is timed. In each turn, one after the other reads a prompt and writes tokens
after it, so that a drift of the machine's speed affects all.
"""

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM

from laconic.runtime.engine import Written
from laconic.runtime.engine.vllm import Vllm

PROMPT, WRITTEN, TURNS = 128, 33, 4
"""Tokens of the prompt, tokens that are written (the first belongs to the prompt), and turns after one to warm up."""
WORDS = 1000
"""The prompt has random tokens below this."""


class Writer(Protocol):
    """A loaded model that writes greedily."""

    def write(self, prompt: Sequence[int], count: int) -> Written:
        """Write `count` tokens after a prompt."""
        ...


class EagerModel:
    """A model in eager transformers, in the dtype of its files and with a cache.

    Args:
        folder: the folder of the model.
    """

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        self.version = f"transformers {version('transformers')}"

    @torch.inference_mode()
    def write(self, prompt: Sequence[int], count: int) -> Written:
        """Write `count` tokens after a prompt."""
        read, past, tokens, seconds = torch.tensor([prompt]), None, [], []
        for _ in range(count):
            start = time.perf_counter()
            found = self._model(read, past_key_values=past, use_cache=True, logits_to_keep=1)
            read, past = found.logits[:, -1].argmax(-1, keepdim=True), found.past_key_values
            tokens.append(int(read))
            seconds.append(time.perf_counter() - start)
        return Written(tokens, seconds)


def measure_in_turns(folders: Mapping[str, Path], eager: str) -> dict[str, dict[str, Any]]:
    """Tokens a second of reading a prompt and of writing, for each model.

    Args:
        folders: the folder of each model by name.
        eager: the name of the one that eager transformers runs; vLLM runs the others.

    Returns:
        For each name `prefill` and `decode`, medians over the turns, and their quartiles.
    """
    torch.set_num_threads(1)
    prompt = random.Random(0).choices(range(WORDS), k=PROMPT)
    seconds: dict[str, list[Sequence[float]]] = {name: [] for name in folders}
    libraries = {}
    with ExitStack() as stack:
        models: dict[str, Writer] = {}
        for name, folder in folders.items():
            model = (
                EagerModel(folder) if name == eager else stack.enter_context(closing(Vllm(folder, PROMPT + WRITTEN)))
            )
            models[name], libraries[name] = model, model.version
        for turn in range(1 + TURNS):
            for name, model in models.items():
                written = model.write(prompt, WRITTEN)
                if turn:
                    seconds[name].append(written.seconds)
    return {name: {**speeds(runs), "library": libraries[name]} for name, runs in seconds.items()}


def speeds(runs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Medians and quartiles of tokens a second.

    Args:
        runs: the seconds of each token that was written, one sequence for each turn.
    """
    prefill = [PROMPT / run[0] for run in runs]
    decode = [1 / median(run[1:]) for run in runs]
    quartiles = {f"{name}_quartiles": quantiles(each, n=4) for name, each in (("prefill", prefill), ("decode", decode))}
    return {"prefill": median(prefill), "decode": median(decode), **quartiles, "turns": len(runs)}
