"""Low rank with a weight for each element: Σ Φ (W − Ŵ)² relative to Σ Φ W² on four matrices of minilm-sst2.

Φ is the Fisher information on 128 training rows. Measured are three closed forms, the EM iteration as it is usually
written (weights divided by their maximum, starting from the plain SVD), and the four solvers of `wlra`, each with 30
iterations and with 300, which stop early once converged. Seconds are CPU time on one core.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import torch
from rich.progress import track
from torch import Tensor

from benchmarks.common import calibration, load_model, write_json
from laconic.calibrate import Fisher, collect_stats
from laconic.methods.lowrank.fwsvd import fisher_weights
from laconic.numerics.lowrank import column_weighted_components, svd_components
from laconic.numerics.weighted import SolverName, weighted_low_rank

SITES = tuple(
    f"bert.encoder.layer.3.{part}"
    for part in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
)
ITERATIONS = (30, 300)
EM_ITERATIONS = (30, 200)


def main(argv: Sequence[str]) -> None:
    """Print the losses; write benchmarks/results/weighted.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=96)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm = load_model("minilm-sst2")
    sites = lm.sites(SITES)
    stats = collect_stats(lm, calibration(lm, "glue/sst2", 128, seed=0), {Fisher}, sites)
    problems = {site.name: (site.weight().detach().double(), stats[site.name][Fisher].matrix) for site in sites}
    cells = [
        {"site": name, **cell}
        for name, (W, Phi) in track(problems.items(), "Solving four matrices")
        for cell in measured(W, Phi, options.rank)
    ]
    path = write_json("weighted", {"rank": options.rank, "rows": 128, "threads": 1, "cells": cells})
    print(f"{'way':<16}" + "".join(f"{name.removeprefix('bert.encoder.layer.3.'):>28}" for name in problems))
    for variant in dict.fromkeys(cell["way"] for cell in cells):
        print(f"{variant:<16}" + "".join(f"{shown(cell):>28}" for cell in cells if cell["way"] == variant))
    print(f"written to {path}")


def measured(W: Tensor, Phi: Tensor, rank: int) -> Iterator[dict]:
    """One cell for each variant: relative loss, seconds, and the number of iterations if it iterates."""
    whole = (Phi * W.square()).sum().item()
    for variant, (solve, most) in variants(W, Phi, rank).items():
        start = time.process_time()
        W_hat, iterations = solve()
        seconds = time.process_time() - start
        loss = (Phi * (W - W_hat).square()).sum().item() / whole
        yield {"way": variant, "loss": loss, "seconds": seconds, "iterations": iterations, "at_most": most}


def variants(W: Tensor, Phi: Tensor, rank: int) -> dict[str, tuple[Callable[[], tuple[Tensor, int]], int]]:
    """By variant: a function that returns (Ŵ, iterations), and the largest number of iterations."""

    def expanded(components: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
        A, B = components()
        return A[:, :rank] @ B[:rank], 0

    def iterated(solver: SolverName, most: int, precondition: bool = True) -> tuple[Tensor, int]:
        A, B, losses = weighted_low_rank(W, Phi, rank, solver, most, precondition)
        return A @ B, len(losses) - 1

    closed = {
        "svd": (lambda: expanded(lambda: svd_components(W)), 0),
        "fwsvd": (lambda: expanded(lambda: column_weighted_components(W, fisher_weights(Phi))), 0),
        "rank-1 weights": (lambda: iterated("em", 0), 0),
    }
    common = {f"plain em @{most}": (lambda most=most: iterated("em", most, False), most) for most in EM_ITERATIONS}
    solvers = {
        f"{solver} @{most}": (lambda solver=solver, most=most: iterated(solver, most), most)
        for solver in get_args(SolverName)
        for most in ITERATIONS
    }
    return {**closed, **common, **solvers}


def shown(cell: dict) -> str:
    """The loss, the number of iterations and the seconds as text."""
    iterations = f"{cell['iterations']} it, " if cell["iterations"] else ""
    return f"{cell['loss']:.5f} ({iterations}{cell['seconds']:.1f} s)"
