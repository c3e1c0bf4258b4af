"""Weighted low rank: every solver descends, whatever the weights; the closed cases are exact; real weights."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.calibrate import Calibration, Fisher, collect_stats
from laconic.calibrate.batching import batches
from laconic.calibrate.corpus import sample
from laconic.calibrate.sources import read
from laconic.model import load
from laconic.numerics.weighted import SolverName, weighted_low_rank
from laconic.numerics.weighted_em import LEAST_WEIGHT, raise_floor, rank_one_bound, rank_one_fit

Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]

RANK = 5
PARTS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
SHAPES = [(20, 32), (32, 20), (24, 24)]
every_solver = pytest.mark.parametrize("solver", get_args(SolverName))
every_shape = pytest.mark.parametrize("shape", SHAPES)
either_way = pytest.mark.parametrize("precondition", [True, False])


def problem(shape: tuple[int, int], decades: float = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and weights of uneven rows and columns that span about so many decades."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    W = torch.randn(shape, dtype=torch.float64, generator=generator)
    spread = torch.rand(m, 1, generator=generator) + torch.rand(n, generator=generator)
    return W, 10 ** (-decades * (spread + torch.rand(shape, generator=generator)).double() / 3)


def best_rank(W: torch.Tensor, rank: int = RANK) -> torch.Tensor:
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vt[:rank]


def loss(W: torch.Tensor, Phi: torch.Tensor, W_hat: torch.Tensor) -> float:
    return (Phi * (W - W_hat).square()).sum().item()


def normalised_em(W: torch.Tensor, Phi: torch.Tensor, rank: int, iterations: int) -> torch.Tensor:
    """Srebro & Jaakkola with weights divided by their maximum, from the plain SVD: what is commonly tried."""
    w = Phi / Phi.max()
    X = best_rank(W, rank)
    for _ in range(iterations):
        X = best_rank(w * W + (1 - w) * X, rank)
    return X


def normalised_nesterov(W: torch.Tensor, Phi: torch.Tensor, rank: int, iterations: int) -> torch.Tensor:
    """Tuzhilina & Hastie as they write it, without restarts: V = X_t + (t − 1)/(t + 2) (X_t − X_{t−1})."""
    w = Phi / Phi.max()
    X = previous = best_rank(W, rank)
    for t in range(1, iterations + 1):
        V = X + (t - 1) / (t + 2) * (X - previous)
        X, previous = best_rank(w * W + (1 - w) * V, rank), X
    return X


@every_solver
@either_way
@every_shape
@pytest.mark.parametrize("decades", [1, 12])
def test_the_loss_never_rises_and_is_that_of_the_factors(solver, precondition, shape, decades):
    W, Phi = problem(shape, decades)
    A, B, losses = weighted_low_rank(W, Phi, RANK, solver, 40, precondition)
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses.tolist()))
    # Topping up adds at most a millionth of the mean weight to rows and columns that have less.
    added = 2 * LEAST_WEIGHT * Phi.mean() * (W - A @ B).square().sum()
    assert abs(losses[-1] - loss(W, Phi, A @ B)) <= 1e-9 * losses[-1] + added
    assert losses[-1] < losses[0]


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    rank=st.integers(1, 12),
    decades=st.floats(0, 14),
    zeros=st.floats(0, 1),
    solver=st.sampled_from(get_args(SolverName)),
    precondition=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_weights_break_it(shape, rank, decades, zeros, solver, precondition):
    W, Phi = problem(shape, decades)
    Phi = Phi * (torch.rand(shape, generator=torch.Generator().manual_seed(1)) >= zeros)
    A, B, losses = weighted_low_rank(W, Phi, min(rank, *shape), solver, 10, precondition)
    assert torch.isfinite(A).all()
    assert torch.isfinite(B).all()
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses.tolist()))
    # Not even far beyond what carries weight may an entry run away.
    assert (A @ B).abs().max() < 1e3 * W.abs().max()


@every_solver
@either_way
def test_dead_rows_and_columns_are_finite_and_fitted_all_the_same(solver, precondition):
    """A matrix of rank r comes back whole, though rows and columns of it have no weight."""
    W, Phi = problem((20, 32))
    W = best_rank(W)
    Phi[3:7] = 0
    Phi[:, :9] = 0
    A, B, _ = weighted_low_rank(W, Phi, RANK, solver, 30, precondition)
    assert torch.allclose(A @ B, W, atol=1e-8)


@every_solver
@either_way
@every_shape
@pytest.mark.parametrize("level", [0.0, 1e-30, 1.0])
def test_uniform_weights_give_the_truncated_svd(solver, precondition, shape, level):
    W, _ = problem(shape)
    A, B, losses = weighted_low_rank(W, torch.full(shape, level, dtype=torch.float64), RANK, solver, 30, precondition)
    assert torch.allclose(A @ B, best_rank(W), atol=1e-8)
    assert len(losses) <= 5


@every_solver
@every_shape
def test_weights_of_rank_one_have_a_closed_form(solver, shape):
    """Ŵ = D_a^{-1/2} SVD_r(D_a^{1/2} W D_b^{1/2}) D_b^{-1/2}."""
    W, Phi = problem(shape)
    a, b = Phi[:, 0], Phi[0] / Phi[0, 0]
    scale = torch.outer(a, b).sqrt()
    A, B, losses = weighted_low_rank(W, scale.square(), RANK, solver)
    assert torch.allclose(A @ B, best_rank(W * scale) / scale, atol=1e-7)
    assert len(losses) <= 5


@every_shape
def test_the_bound_is_above_every_weight_and_met_in_every_row_and_column(shape):
    _, Phi = problem(shape)
    ratio = Phi / torch.outer(*rank_one_bound(Phi)).square()
    assert ratio.max() <= 1 + 1e-12
    assert torch.allclose(ratio.amax(0), torch.ones(shape[1], dtype=torch.float64))
    assert torch.allclose(ratio.amax(1), torch.ones(shape[0], dtype=torch.float64))


def test_topping_up_leaves_weighted_rows_and_columns_alone():
    _, Phi = problem((20, 32))
    assert torch.equal(raise_floor(Phi), Phi)
    Phi[4] = 0
    raised = raise_floor(Phi)
    assert torch.allclose(raised[4].sum(), LEAST_WEIGHT * Phi.sum(1).mean())
    others = [i for i in range(20) if i != 4]
    assert torch.equal(raised[others], Phi[others])
    p, q = rank_one_fit(raised)
    assert torch.allclose(p.square() * q.square().sum(), raised.sum(1))


@pytest.mark.parametrize("iterations", [1, 7, 30])
def test_unscaled_em_is_the_iteration_of_srebro_and_jaakkola(iterations):
    W, Phi = problem((20, 32), decades=1)
    A, B, losses = weighted_low_rank(W, Phi, RANK, "em", iterations, precondition=False)
    assert len(losses) == iterations + 1
    assert torch.allclose(A @ B, normalised_em(W, Phi, RANK, iterations), atol=1e-8)


@pytest.mark.parametrize("iterations", [1, 2, 8])
def test_unscaled_nesterov_is_the_iteration_of_tuzhilina_and_hastie(iterations):
    W, Phi = problem((20, 32), decades=2)
    A, B, _ = weighted_low_rank(W, Phi, RANK, "nesterov", iterations, precondition=False)
    assert torch.allclose(A @ B, normalised_nesterov(W, Phi, RANK, iterations), atol=1e-8)


@every_solver
@either_way
def test_the_transposed_problem_has_the_transposed_solution(solver, precondition):
    W, Phi = problem((20, 32))
    A, B, losses = weighted_low_rank(W, Phi, RANK, solver, 5, precondition)
    C, D, mirrored = weighted_low_rank(W.T, Phi.T, RANK, solver, 5, precondition)
    assert torch.allclose(mirrored, losses)
    assert torch.allclose((C @ D).T, A @ B, atol=1e-8)


@every_shape
@pytest.mark.parametrize("seed", range(3))
def test_thirty_preconditioned_iterations_are_enough(shape, seed):
    W, Phi = problem(shape, seed=seed)
    few, many = (weighted_low_rank(W, Phi, RANK, "nesterov", iterations).losses[-1] for iterations in (30, 300))
    assert few <= 1.005 * many


@pytest.fixture(scope="module")
def real(shared_data: Path, shared_models: Path) -> Iterator[Matrices]:
    """Four matrices of one block of minilm-sst2 and their Fisher information on glue/sst2."""
    lm = load(str(shared_models / "minilm-sst2"))
    sites = lm.sites([f"bert.encoder.layer.3.{part}" for part in PARTS])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACONIC_DATA", str(shared_data))
        rows = sample(read("glue/sst2", "train"), 64, seed=0)
    data = Calibration(batches(lm, rows, batch_size=16, max_length=128), seed=0)
    known = collect_stats(lm, data, {Fisher}, sites)
    yield {
        part: (site.weight().detach().double(), known[site.name][Fisher].matrix)
        for part, site in zip(PARTS, sites, strict=True)
    }


@pytest.mark.parametrize("part", PARTS)
def test_on_real_weights_thirty_iterations_are_enough_and_beat_normalised_em(real: Matrices, part: str):
    # A quarter of their rank, as 96 is of the whole matrices.
    W, Phi = (matrix[:192, :192].contiguous() for matrix in real[part])
    few, many = (weighted_low_rank(W, Phi, 48, "nesterov", iterations).losses for iterations in (30, 300))
    assert few[-1] <= 1.005 * many[-1]
    assert all(later <= earlier for earlier, later in itertools.pairwise(many.tolist()))
    # Weights divided by their maximum leave most entries where they were: worse than the closed form they could have.
    em = loss(W, Phi, normalised_em(W.float(), Phi.float(), 48, 30).double())
    assert few[-1] < 0.8 * em
    assert few[0] < em


@every_solver
def test_on_real_weights_every_solver_descends_below_the_closed_form(real: Matrices, solver: SolverName):
    W, Phi = real["attention.self.query"]
    losses = weighted_low_rank(W, Phi, 48, solver, 10).losses
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses.tolist()))
    assert losses[-1] < 0.95 * losses[0]
