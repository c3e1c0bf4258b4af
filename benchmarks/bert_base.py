"""Seconds and memory of compressing a BERT-base (110M random weights, 128 rows of 128 tokens), stage by stage.

The time of the statistics is compared with a plain forward and backward pass over the same rows. The time of the
decompositions is compared with DRONE written in the simplest way, by `torch.linalg.svd` of the weights and of the
inputs themselves. Every part runs in its own process, so that each has its own peak of memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from os import environ

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from benchmarks.common import write_json
from laconic.calibrate import Calibration, collect_stats
from laconic.compress import Compress
from laconic.methods import KfacSvd
from laconic.model import LanguageModel

ROWS, LENGTH, BATCH = 128, 128, 16
SPECTRUM = {"method": KfacSvd(), "allocate": "spectrum"}


def main(argv: Sequence[str]) -> None:
    """Print every part; write benchmarks/results/bert_base.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--part", choices=PARTS, help="one of the parts, in this process")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.part is not None:
        seconds = PARTS[options.part]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"part": options.part, "seconds": seconds, "peak_gib": peak}))
        return
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            command = [
                sys.executable,
                "-m",
                "benchmarks",
                "bert_base",
                "--part",
                part,
                "--threads",
                str(options.threads),
            ]
            ran = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**environ, "LACONIC_CACHE": folder}
            )
            parts.append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"{part:12} {parts[-1]['seconds']:7.1f} s  peak {parts[-1]['peak_gib']:.2f} GiB", flush=True)
    machine = {"threads": options.threads, "instructions": torch.backends.cpu.get_cpu_capability()}
    print(f"written to {write_json('bert_base', {**machine, 'torch': torch.__version__, 'parts': parts})}")


def bert() -> LanguageModel:
    """A classifier of BERT-base's shape, with random weights."""
    torch.manual_seed(0)
    return LanguageModel.of(BertForSequenceClassification(BertConfig()).eval())


def encoder_of(lm: LanguageModel) -> BertModel:
    """The encoder without its head."""
    assert isinstance(lm.model, BertForSequenceClassification)
    return lm.model.bert


def batches() -> list[dict[str, Tensor]]:
    """Random tokens without padding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 30_000, (ROWS, LENGTH), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in tokens.split(BATCH)]


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def plain() -> float:
    """A forward and backward pass with gradients of all weights."""
    lm = bert()

    def passes() -> None:
        for batch in batches():
            lm.model(**batch).logits.logsumexp(-1).sum().backward()
            lm.model.zero_grad()

    return timed(passes)


def statistics() -> float:
    """Collect the statistics that kfac-svd with spectrum needs."""
    lm = bert()
    needs = Compress(keep=0.5, **SPECTRUM).needs
    return timed(lambda: collect_stats(lm, Calibration(batches()), needs, lm.sites()))


def compressed(keep: float) -> float:
    """The whole compression, from a model in memory to a smaller one."""
    lm = bert()
    return timed(lambda: Compress(keep=keep, **SPECTRUM).apply(lm, Calibration(batches())))


def straightforward() -> float:
    """DRONE at half of the bytes, by two singular value decompositions for each matrix: of weights and of inputs.

    Only the first of the equal blocks is measured; the result is multiplied by their number.
    """
    lm = bert()
    blocks = encoder_of(lm).encoder.layer
    linears = [module for module in blocks[0].modules() if isinstance(module, nn.Linear)]
    return len(blocks) * timed(lambda: [_drone(lm, linear) for linear in linears])


@torch.no_grad()
def _drone(lm: LanguageModel, linear: nn.Linear) -> None:
    """Theorem 1 of the paper: W = U_W S_W V_W^T, X = U_X S_X V_X^T, and the rank-r truncation of S_W V_W^T U_X S_X."""
    seen: list[Tensor] = []
    encoder = encoder_of(lm)
    hook = linear.register_forward_hook(lambda _, args, __: seen.append(args[0].reshape(-1, linear.in_features)))
    for batch in batches():
        # The pass stops after the block, so that mostly the method is timed.
        encoder.encoder.layer[0](encoder.embeddings(batch["input_ids"]))
    hook.remove()
    X, W = torch.cat(seen).T, linear.weight
    U_W, S_W, Vt_W = torch.linalg.svd(W, full_matrices=False)
    U_X, S_X, _ = torch.linalg.svd(X, full_matrices=False)
    U_Z, S_Z, Vt_Z = torch.linalg.svd((S_W[:, None] * Vt_W) @ (U_X * S_X), full_matrices=False)
    m, n = W.shape
    rank = m * n // (2 * (m + n))
    linear.weight.data = ((U_W @ U_Z[:, :rank]) * S_Z[:rank]) @ (Vt_Z[:rank] / S_X @ U_X.T)


PARTS: dict[str, Callable[[], float]] = {
    "plain": plain,
    "statistics": statistics,
    "first keep": lambda: compressed(0.5),
    "second keep": lambda: compressed(0.25),
    "drone by svd": straightforward,
}
