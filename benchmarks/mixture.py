"""Loss of quality of a compressed mixture of experts, beside a dense model of the same bytes.

Both models are those of `python -m benchmarks mixture_models`, trained on the same rows. Each is compressed by the same
methods, calibrated on rows of its training texts, and compared with its uncompressed self on held-out texts: the KL
divergence of every token, the perplexity, and, for the mixture, the KL divergence by the expert that the router of the
uncompressed model ranks first. Each finished cell is one line of benchmarks/results/mixture.jsonl. An interrupted run
continues; to start again, delete the file.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import Cells, clone
from benchmarks.mixture_models import (
    Texts,
    held_out_texts,
    missing_data,
    rows_of,
    tokenizer,
    trained_model,
    training_texts,
)
from laconic.calibrate import Calibration
from laconic.calibrate.expert_activity import measure_experts
from laconic.compress import Compress, Narrow, Step
from laconic.methods import Gptq, KfacPrune, KfacSvd
from laconic.model import LanguageModel, load
from laconic.model.mixture import find_mixtures

CELLS = Cells("mixture", ("model", "way", "rows", "seed"))
CALIBRATION_ROWS, FEW_ROWS, TEST_ROWS = 128, 8, 100
"""Rows of 128 tokens; `TEST_ROWS` of stories, and as many of articles."""
BATCH = 20
SEEDS = (0, 1, 2)

TARGETS = ("*_proj*",)
"""The projections of attentions, feed-forwards and experts."""

METHODS: dict[str, Callable[[int], Step]] = {
    "gptq, 4 bits": lambda _: Compress(method=Gptq(bits=4), targets=TARGETS, allow_dense=True),
    "gptq, 3 bits": lambda _: Compress(method=Gptq(bits=3), targets=TARGETS, allow_dense=True),
    "kfac-svd, half": lambda _: Compress(method=KfacSvd(), keep=0.5, targets=TARGETS, allow_dense=True),
    "kfac-prune, half": lambda _: Compress(method=KfacPrune(sparsity=0.5), targets=TARGETS, allow_dense=True),
}
"""The steps that both models can have, as a function of the seed."""
WAYS: dict[str, dict[str, Callable[[int], Step]]] = {
    "mixture": {
        **METHODS,
        "half of the experts, reap": lambda _: Narrow(experts=0.5),
        "half of the experts, frequency": lambda _: Narrow(experts=0.5, expert_importance="frequency"),
        "half of the experts, random": lambda seed: Narrow(experts=0.5, expert_importance="random", seed=seed),
    },
    "dense": {**METHODS, "half of the channels, obs": lambda _: Narrow(channels=0.5)},
}
FEW_WAYS = tuple(METHODS)
"""The ways that are also calibrated on `FEW_ROWS`, so that many experts see fewer tokens than they are wide."""


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(WAYS), help="one of the models")
    parser.add_argument("--ways", nargs="+", help="some of the ways")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    options = parser.parse_args(argv)
    if (reason := missing_data()) is not None:
        print(f"Nothing was measured: {reason}.")
        return
    names = [options.only] if options.only else list(WAYS)
    keys = [(name, way, CALIBRATION_ROWS, seed) for seed in options.seeds for name in names for way in WAYS[name]]
    if "mixture" in names:
        keys += [("mixture", way, FEW_ROWS, seed) for seed in options.seeds for way in FEW_WAYS]
    measure([key for key in keys if options.ways is None or key[1] in options.ways])
    print(f"{CELLS}; `python -m benchmarks mixture_tables` makes the tables")


def measure(keys: Sequence[tuple[str, str, int, int]]) -> None:
    """Measure the cells that have no line yet, in this order."""
    models: dict[str, LanguageModel] = {}
    test = test_rows()
    for key in track(CELLS.missing(keys), "measuring"):
        name, way, rows, seed = key
        if name not in models:
            models[name] = load(str(trained_model(name))).with_dtype(torch.float16)
        data, small = calibration(rows, seed), clone(models[name])
        outcome = WAYS[name][way](seed).apply(small, data)
        CELLS.add(
            key,
            {
                "bytes": outcome.nbytes,
                "dense_bytes": outcome.dense_nbytes,
                "file_bytes": small.size()[1],
                "parameters": small.size()[0],
                **compare(models[name], small, test).to_json(),
                **({"calibrated": expert_tokens(models[name], data)} if name == "mixture" else {}),
            },
        )


def calibration(rows: int, seed: int) -> Calibration:
    """Rows of the training texts, drawn with `seed`."""
    every = rows_of(training_texts(), tokenizer())
    drawn = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:rows]]
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in drawn.split(BATCH)]
    return Calibration(batches, seed=seed)


def test_rows() -> Tensor:
    """The first held-out rows of stories, then of articles."""
    texts = held_out_texts()
    kinds = (Texts(texts.stories, ()), Texts((), texts.articles))
    return torch.cat([rows_of(kind, tokenizer())[:TEST_ROWS] for kind in kinds])


def expert_tokens(lm: LanguageModel, data: Calibration) -> list[list[int]]:
    """The number of calibration tokens of each expert of each block."""
    return [activity.tokens.int().tolist() for activity in measure_experts(lm, data).values()]


@dataclass
class Comparison:
    """A compressed model beside the original.

    Args:
        kl: the KL divergence of each row, nats per token.
        nats: the negative log-likelihood of each row under the compressed model, nats per token.
        dense_nats: the same under the original.
        expert_kl: for each block of a mixture, the sum of the KL divergence over the tokens whose first expert is e.
        expert_tokens: the number of these tokens.
    """

    kl: list[float] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    dense_nats: list[float] = field(default_factory=list)
    expert_kl: list[Tensor] = field(default_factory=list)
    expert_tokens: list[Tensor] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The values of a cell."""
        rows: dict[str, object] = {
            name: [round(value, 5) for value in getattr(self, name)] for name in ("kl", "nats", "dense_nats")
        }
        if not self.expert_kl:
            return rows
        sums = [[round(value, 4) for value in block.tolist()] for block in self.expert_kl]
        return {**rows, "expert_kl": sums, "expert_tokens": [block.tolist() for block in self.expert_tokens]}


@torch.inference_mode()
def compare(lm: LanguageModel, small: LanguageModel, rows: Tensor) -> Comparison:
    """Compare the predictions of a compressed model with those of the original.

    Args:
        lm: the original.
        small: the compressed model.
        rows: token ids, (rows, tokens).
    """
    mixtures = find_mixtures(lm.model)
    found = Comparison()
    found.expert_kl = [torch.zeros(mixture.count, dtype=torch.float64) for mixture in mixtures]
    found.expert_tokens = [torch.zeros(mixture.count, dtype=torch.long) for mixture in mixtures]
    for ids in rows.split(BATCH):
        with FirstExperts([mixture.experts for mixture in mixtures]) as experts:
            said = lm.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        now = small.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        kl = (said.exp() * (said - now)).sum(-1)
        found.kl += kl.mean(1).tolist()
        found.nats += _nats(now, ids)
        found.dense_nats += _nats(said, ids)
        for sums, counts, first in zip(found.expert_kl, found.expert_tokens, experts.first, strict=True):
            sums.index_add_(0, first, kl.flatten().double())
            counts.index_add_(0, first, torch.ones_like(first))
    return found


def _nats(logarithms: Tensor, ids: Tensor) -> list[float]:
    """The negative log-likelihood of the next token, averaged over each row."""
    return functional.nll_loss(logarithms[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1).tolist()


class FirstExperts(ExitStack):
    """A context manager that notes the expert with the largest weight of each token, for each module of experts."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first: list[Tensor] = []
        for module in modules:
            self.callback(module.register_forward_pre_hook(self._note).remove)

    def _note(self, _: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> None:
        index, weights = args[1:]
        self.first.append(index.gather(1, weights.argmax(1, keepdim=True)).flatten())
