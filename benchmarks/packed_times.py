"""Times of a language model of 116 million weights whose blocks are codes: the measurement of `packed_forward`.

It imports nothing else of the benchmarks, so that it also runs on an older checkout: `python packed_times.py ROUNDS`
prints the times of 4 bits as JSON.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from laconic.formats import Quantized
from laconic.numerics.grid import Grid

GROUP = 64
BITS = (2, 3, 4, 5, 6, 7, 8)
LENGTHS = {128: BITS, 512: (3, 4, 8), 2048: (4, 8)}
"""The bits that are measured for each length of a prompt."""
TOKENS = 16
NO_PRODUCTS = "no products"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Milliseconds = dict[str, dict[str, dict[str, float]]]
"""By dtype, task and model."""


@torch.inference_mode()
def measure(rounds: int, bits: Sequence[int]) -> Milliseconds:
    """Median CPU milliseconds of prompts, and of a token after a prompt of 128."""
    torch.set_num_threads(1)
    times: Milliseconds = {}
    for dtype_name, dtype in DTYPES.items():
        torch.manual_seed(0)
        dense = dense_model()
        torch.nn.Module.to(dense, dtype)
        models = {"dense": dense, **{f"{count} bits": with_codes(dense, count) for count in bits}}
        mine: dict[str, dict[str, float]] = {}
        for length, measured in LENGTHS.items():
            prompt = torch.randint(0, dense.config.vocab_size, (1, length))
            names = ["dense", *(f"{count} bits" for count in measured if count in bits)]
            calls = {name: partial(timed_prompt, models[name], prompt) for name in names}
            mine[f"{length} tokens"] = alternate(calls, max(2, rounds * 128 // length))
        prompt = torch.randint(0, dense.config.vocab_size, (1, 128))
        mine["one token"] = alternate(
            {
                name: partial(timed_token, model, prompt)
                for name, model in {**models, NO_PRODUCTS: without_products(dense)}.items()
            },
            rounds,
        )
        times[dtype_name] = mine
    return times


def alternate(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each call's times over `rounds`, after one that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            taken[name].append(call())
    return {name: round(median(times[1:]), 3) for name, times in taken.items()}


def timed_prompt(model: LlamaForCausalLM, prompt: torch.Tensor) -> float:
    """CPU milliseconds of a prompt."""
    start = time.process_time()
    model(prompt, use_cache=True, logits_to_keep=1)
    return 1000 * (time.process_time() - start)


def timed_token(model: LlamaForCausalLM, prompt: torch.Tensor) -> float:
    """CPU milliseconds of a generated token, the fastest of several."""
    cache = DynamicCache(config=model.config)
    model(prompt, past_key_values=cache, logits_to_keep=1)
    least = float("inf")
    for _ in range(TOKENS):
        start = time.process_time()
        model(prompt[:, :1], past_key_values=cache, logits_to_keep=1)
        least = min(least, time.process_time() - start)
    return 1000 * least


def dense_model() -> LlamaForCausalLM:
    """116 million random weights, of which 113 million are in the blocks."""
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        vocab_size=4096,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


class Zeros(torch.nn.Module):
    """Stands in for a linear layer, and returns zeros."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(*x.shape[:-1], self.out_features)


def without_products(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A model that computes everything but the products with the matrices of its blocks."""
    return replace_linears(model, lambda layer: Zeros(layer.out_features))


def with_codes(model: LlamaForCausalLM, bits: int) -> LlamaForCausalLM:
    """A model of the same shape, with random codes in place of the matrices of its blocks."""

    def random_codes(layer: torch.nn.Linear) -> torch.nn.Module:
        out, width = layer.weight.shape
        codes = torch.randint(0, 2**bits, (out, width), dtype=torch.uint8)
        scale = (0.05 / 2**bits * (torch.rand(out, width // GROUP) + 0.5)).half().float()
        zero = torch.randint(2 ** (bits - 2), 3 * 2 ** (bits - 2), scale.shape).float()
        return Quantized.from_codes(codes, Grid(scale, zero, bits, GROUP), symmetric=False, dtype=model.dtype)

    return replace_linears(model, random_codes)


def replace_linears(model: LlamaForCausalLM, make: Callable[[torch.nn.Linear], torch.nn.Module]) -> LlamaForCausalLM:
    """A copy of a model, with other layers in place of the linear layers of its blocks."""
    linears = {path: module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linears.pop("lm_head")
    # The matrices are left out of the copy.
    copied = copy.deepcopy(model, {id(module): torch.nn.Identity() for module in linears.values()})
    for path, module in linears.items():
        copied.set_submodule(path, make(module))
    return copied


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), bits=(4,))))
