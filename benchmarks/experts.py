"""Speed of a layer of 64 experts, of which a router chooses 8 for each token, with random weights.

Three questions, each by runs that alternate so that other load on the machine slows all of them:

- How long does collecting statistics take, beside a dense model with as many active parameters?
- How long does a forward pass of the compressed experts take, beside that of transformers' module?
- How much memory does solving take beside the model, with 8 and with 64 experts?
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

from benchmarks.common import RESULTS, clone, write_json
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import (
    Calibration,
    Fisher,
    GradCovariance,
    InputCovariance,
    Statistic,
    collect_stats,
)
from laconic.calibrate.passes import describe_machine, random_batch
from laconic.compress import Compress
from laconic.methods import Gptq, Magnitude, Method, Rtn, Svd
from laconic.model import LanguageModel
from laconic.system import release_freed_memory

NAME = "experts"
EXPERTS, PER_TOKEN, WIDTH, CHANNELS = 64, 8, 512, 256
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "vocab_size": 512,
    "eos_token_id": 2,
}
EXPERTS_PATH = "model.layers.0.mlp.experts"
KINDS: dict[str, frozenset[type[Statistic]]] = {
    "inputs (gptq)": frozenset({InputCovariance}),
    "inputs and gradients (kfac-svd)": frozenset({InputCovariance, GradCovariance}),
    "Fisher information (wlra)": frozenset({Fisher}),
}
METHODS: dict[str, Method] = {
    "4 bits": Rtn(bits=4),
    "low rank, half the bytes": Svd(multiple=1),
    "half of the weights zero": Magnitude(sparsity=0.5),
}
ROWS = 16
"""Rows of a calibration batch."""
LENGTHS = (128, 512)
"""Tokens of a row. Fisher information is a sum over the rows, whose gradients are products of their own."""
CALIBRATION_TOKENS = 16384
TOKENS = (2048, 256, 16)
STATISTICS_BOUND, FORWARD_BOUND = 1.3, 1.15
BEGIN = "<!-- made by `python -m benchmarks experts_tables` -->"


def main(argv: Sequence[str]) -> None:
    """Print the ratios; write benchmarks/results/experts.json and the tables in docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = {
        "rounds": options.rounds,
        "memory": {str(experts): solving_memory(experts) for experts in (8, EXPERTS)},
        "forward": forward_passes(options.rounds),
        "statistics": statistics(options.rounds),
        "machine": describe_machine(torch.device("cpu")),
    }
    print(describe(result))
    print(f"written to {write_json(NAME, result)}")
    write_tables([])


def mixture(experts: int = EXPERTS) -> LanguageModel:
    """A model with one block of experts."""
    config = OlmoeConfig(
        **SHAPE, intermediate_size=CHANNELS, num_experts=experts, num_experts_per_tok=PER_TOKEN, pad_token_id=1
    )
    return language_model(OlmoeForCausalLM(config))


def dense() -> LanguageModel:
    """A model with one block, of as many channels as a token has in its experts."""
    return language_model(LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=PER_TOKEN * CHANNELS)))


def language_model(model: PreTrainedModel) -> LanguageModel:
    """The model in eval mode."""
    return LanguageModel.of(model.eval())


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each call over `rounds`, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: median(taken[1:]) for name, taken in seconds.items()}


def statistics(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of collecting the statistics of the feed-forward, by statistics, tokens of a row and model."""
    torch.manual_seed(0)
    models = {"experts": mixture(), "dense": dense()}
    targets = {"olmoe": "experts", "llama": "ffn"}

    def collect(lm: LanguageModel, data: Calibration, kinds: frozenset[type[Statistic]]) -> Callable[[], object]:
        return partial(collect_stats, lm, data, kinds, lm.sites((targets[lm.model.config.model_type],)))

    found: dict[str, dict[str, dict[str, float]]] = {label: {} for label in KINDS}
    for length in LENGTHS:
        # So many that every expert sees more tokens than its matrices have columns.
        batches = range(CALIBRATION_TOKENS // (ROWS * length))
        data = Calibration([random_batch(models["dense"], ROWS, length, seed) for seed in batches], labels="sampled")
        for label, kinds in KINDS.items():
            calls = {name: collect(lm, data, kinds) for name, lm in models.items()}
            # A pass over all batches takes so long that few rounds suffice.
            found[label][str(length)] = alternate(calls, max(rounds // 3, 1))
    return found


@torch.inference_mode()
def forward_passes(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a pass through the experts, by number of tokens and form."""
    torch.manual_seed(0)
    lm = mixture()
    layers: dict[str, nn.Module] = {}
    for name, method in METHODS.items():
        copy = clone(lm)
        keep = None if method.has_size else 0.5
        Compress(method=method, keep=keep, targets=("experts",), allow_dense=True).apply(copy, None)
        layers[name] = copy.model.get_submodule(EXPERTS_PATH)
    layers = {"uncompressed": lm.model.get_submodule(EXPERTS_PATH), **layers}
    found = {}
    for tokens in TOKENS:
        inputs = route_tokens(tokens)
        calls = {name: partial(layer, *inputs) for name, layer in layers.items()}
        found[str(tokens)] = alternate(calls, 3 * rounds)
    return found


def route_tokens(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, with the experts of each and their weights."""
    weights, index = torch.randn(tokens, EXPERTS).softmax(-1).topk(PER_TOKEN)
    return torch.randn(tokens, WIDTH), index, weights


def solving_memory(experts: int) -> dict[str, float]:
    """Megabytes that solving adds at its peak to the model and its compressed experts."""
    torch.manual_seed(0)
    lm = mixture(experts)
    sites = lm.sites(("experts",))
    stats = collect_stats(lm, Calibration([random_batch(lm, 4, 128)]), {InputCovariance}, sites)
    step = Compress(method=Gptq(bits=4), targets=("experts",), allow_dense=True)
    # Memory that was freed before would be used again, and not be counted.
    gc.collect()
    release_freed_memory()
    clear_peak()
    before = read_memory("VmRSS")
    outcome = step.apply_with(lm, stats)
    return {
        "peak": read_memory("VmHWM") - before,
        "result": outcome.nbytes / 2**20,
        "expert": 4 * sum(site.shape[0] * site.shape[1] for site in sites) / experts / 2**20,
    }


def read_memory(field: str) -> float:
    """A field of /proc/self/status in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def clear_peak() -> None:
    """Set the peak of the resident memory of this process to the present amount."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def describe(result: dict) -> str:
    """The tables, with the ratios that are above their bounds."""
    lines = [
        "| statistics | tokens of a row | experts, ms | dense, ms | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    missed = []
    for label, by_length in result["statistics"].items():
        for length, seconds in by_length.items():
            experts, dense = 1000 * seconds["experts"], 1000 * seconds["dense"]
            ratio = experts / dense
            lines.append(f"| {label} | {length} | {experts:.0f} | {dense:.0f} | {ratio:.2f} |")
            missed += [f"{label}, {length} tokens: {ratio:.2f}, above {STATISTICS_BOUND}."] * (ratio > STATISTICS_BOUND)
    names = list(METHODS)
    lines += ["", f"| tokens | uncompressed, ms | {' | '.join(names)} |", "|---:|---:|" + "---:|" * len(names)]
    for tokens, seconds in result["forward"].items():
        ratios = {name: seconds[name] / seconds["uncompressed"] for name in names}
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios.values())
        lines.append(f"| {tokens} | {1000 * seconds['uncompressed']:.1f} | {shown} |")
        missed += [
            f"{name}, {tokens} tokens: {ratio:.2f}, above {FORWARD_BOUND}."
            for name, ratio in ratios.items()
            if ratio > FORWARD_BOUND
        ]
    lines += [
        "",
        "| experts | peak of solving, MB | its result, MB | weights of one expert, MB |",
        "|---:|---:|---:|---:|",
    ]
    for experts, memory in result["memory"].items():
        lines.append(f"| {experts} | {memory['peak']:.1f} | {memory['result']:.1f} | {memory['expert']:.1f} |")
    machine = result["machine"]
    lines += [
        "",
        f"CPU time of one thread, medians; torch {machine['torch']}, {machine['instructions']}.",
    ]
    return "\n".join([*lines, *(["", "Above the bound: " + " ".join(missed)] if missed else [])])


def write_tables(argv: Sequence[str]) -> None:
    """Write the latest measurement into docs/figures/experts.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    path = RESULTS / f"{NAME}.json"
    if path.exists():
        replace_between(ROOT / "docs/figures/experts.md", f"{describe(json.loads(path.read_text()))}\n", BEGIN)
