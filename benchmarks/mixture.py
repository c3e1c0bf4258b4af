"""Loss of quality of a compressed mixture of experts, beside a dense model of the same bytes.

Both models are those of `python -m benchmarks mixture_models`, trained on the same rows. Each is compressed by the same
methods, calibrated on rows of its training texts, and compared with its uncompressed self on held-out texts: the KL
divergence of every token, the perplexity, and, for the mixture, the KL divergence by the expert that the router of the
uncompressed model ranks first. A third model, as large as the part of the mixture that reads a token, is evaluated
uncompressed. Each finished cell is one line of benchmarks/results/mixture.jsonl. An interrupted run continues; to start
again, delete the file.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import Cells, clone
from benchmarks.mixture_models import (
    MODELS,
    Texts,
    held_out_texts,
    missing_data,
    rows_of,
    tokenizer,
    trained_model,
    training_texts,
)
from laconic.calibrate import Calibration, LayerStats, collect_stats
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

METHODS: dict[str, Compress] = {
    "gptq, 4 bits": Compress(method=Gptq(bits=4), targets=TARGETS, allow_dense=True),
    "gptq, 3 bits": Compress(method=Gptq(bits=3), targets=TARGETS, allow_dense=True),
    "kfac-svd, half": Compress(method=KfacSvd(), keep=0.5, targets=TARGETS, allow_dense=True),
    "kfac-prune, half": Compress(method=KfacPrune(sparsity=0.5), targets=TARGETS, allow_dense=True),
}
"""The steps that both models can have."""
NARROW: dict[str, dict[str, Callable[[int], Step]]] = {
    "mixture": {
        "half of the experts, reap": lambda _: Narrow(experts=0.5),
        "half of the experts, frequency": lambda _: Narrow(experts=0.5, expert_importance="frequency"),
        "half of the experts, random": lambda seed: Narrow(experts=0.5, expert_importance="random", seed=seed),
    },
    "dense": {"half of the channels, obs": lambda _: Narrow(channels=0.5)},
}
"""The steps that only one of the models can have, as a function of the seed."""
WAYS = {name: (*METHODS, *only) for name, only in NARROW.items()}
FEW_WAYS = tuple(METHODS)
"""The ways that are also calibrated on `FEW_ROWS`, so that many experts see fewer tokens than they are wide."""
UNCOMPRESSED = "uncompressed"

Key = tuple[str, str, int, int]


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
    keys: list[Key] = []
    for seed in options.seeds:
        for name in names:
            keys += [(name, way, CALIBRATION_ROWS, seed) for way in WAYS[name]]
            keys += [(name, way, FEW_ROWS, seed) for way in FEW_WAYS if name == "mixture"]
    measure([key for key in keys if options.ways is None or key[1] in options.ways])
    for name, *_ in CELLS.missing((name, UNCOMPRESSED, 0, 0) for name in MODELS):
        measure_uncompressed(name)
    print(f"{CELLS}; `python -m benchmarks mixture_tables` makes the tables")


def measure(keys: Sequence[Key]) -> None:
    """Measure the cells that have no line yet, in this order."""
    models: dict[str, LanguageModel] = {}
    missing = CELLS.missing(keys)
    shown = iter(track(missing, "measuring"))
    for (name, rows, seed), group in groupby(missing, lambda key: (key[0], *key[2:])):
        if name not in models:
            models[name] = load_model(name)
        # Cells with the same calibration rows share the pass over them, and the predictions of the original.
        lm, data, ways = models[name], calibration(rows, seed), [way for _, way, *_ in group]
        needs = frozenset().union(*(METHODS[way].needs for way in ways if way in METHODS))
        stats = collect_stats(lm, data, needs, lm.sites(TARGETS))
        tokens = {"calibrated": expert_tokens(lm, data)} if name == "mixture" else {}
        original = predict(lm, test_rows())
        for way in ways:
            key, small = next(shown), clone(lm)
            if way in METHODS:
                # The solutions of a method do not pass to the next one.
                own = {site: LayerStats(of, of.support, of.token_count) for site, of in stats.items()}
                outcome = METHODS[way].apply_with(small, own, data)
            else:
                outcome = NARROW[name][way](seed).apply(small, data)
            parameters, nbytes = small.size()
            CELLS.add(
                key,
                {
                    "bytes": outcome.nbytes,
                    "dense_bytes": outcome.dense_nbytes,
                    "file_bytes": nbytes,
                    "parameters": parameters,
                    **compare(original, small, test_rows()).to_json(),
                    **tokens,
                },
            )


def measure_uncompressed(name: str) -> None:
    """Write the cell of an uncompressed model."""
    lm = load_model(name)
    parameters, nbytes = lm.size()
    blocks = sum(lm.stored_nbytes(lm.sites(TARGETS)).values())
    nats = [round(value, 5) for value in predict(lm, test_rows()).nats]
    cell = {"bytes": blocks, "dense_bytes": blocks, "file_bytes": nbytes, "parameters": parameters, "dense_nats": nats}
    CELLS.add((name, UNCOMPRESSED, 0, 0), cell)


def load_model(name: str) -> LanguageModel:
    """A trained model in 16 bits."""
    return load(str(trained_model(name))).with_dtype(torch.float16)


@cache
def training_rows() -> Tensor:
    """All rows of the training texts, (rows, tokens)."""
    return rows_of(training_texts(), tokenizer())


def calibration(rows: int, seed: int) -> Calibration:
    """Rows of the training texts, drawn with `seed`."""
    every = training_rows()
    drawn = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:rows]]
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in drawn.split(BATCH)]
    return Calibration(batches, seed=seed)


@cache
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


@dataclass
class Original:
    """The predictions of an uncompressed model.

    Args:
        logarithms: the logarithms of the probabilities, for each batch of rows (rows, tokens, vocabulary).
        nats: the negative log-likelihood of each row, nats per token.
        first: for each batch and block of a mixture, the expert with the largest weight of each token.
        counts: the number of experts of each block of a mixture.
    """

    logarithms: list[Tensor]
    nats: list[float]
    first: list[list[Tensor]]
    counts: list[int]


@torch.inference_mode()
def predict(lm: LanguageModel, rows: Tensor) -> Original:
    """The predictions of an uncompressed model on rows of token ids, (rows, tokens)."""
    mixtures = find_mixtures(lm.model)
    found = Original([], [], [], [mixture.count for mixture in mixtures])
    for ids in rows.split(BATCH):
        with FirstExperts([mixture.experts for mixture in mixtures]) as experts:
            said = logarithms(lm, ids)
        found.logarithms.append(said)
        found.nats += _nats(said, ids)
        found.first.append(experts.first)
    return found


@torch.inference_mode()
def compare(original: Original, small: LanguageModel, rows: Tensor) -> Comparison:
    """Compare the predictions of a compressed model with those of the original on the same rows."""
    found = Comparison(dense_nats=original.nats)
    found.expert_kl = [torch.zeros(count, dtype=torch.float64) for count in original.counts]
    found.expert_tokens = [torch.zeros(count, dtype=torch.long) for count in original.counts]
    for ids, said, experts in zip(rows.split(BATCH), original.logarithms, original.first, strict=True):
        now = logarithms(small, ids)
        kl = (said.exp() * (said - now)).sum(-1)
        found.kl += kl.mean(1).tolist()
        found.nats += _nats(now, ids)
        for sums, counts, first in zip(found.expert_kl, found.expert_tokens, experts, strict=True):
            sums.index_add_(0, first, kl.flatten().double())
            counts.index_add_(0, first, torch.ones_like(first))
    return found


def logarithms(lm: LanguageModel, ids: Tensor) -> Tensor:
    """The logarithms of the probabilities of all tokens, (rows, tokens, vocabulary), in 32 bits."""
    return lm.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)


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
