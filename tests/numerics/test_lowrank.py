"""The two-sided expansion is optimal for every shape and every kind of singularity; rank arithmetic.

The narrower head: as good as a truncated SVD of all scores, whatever the queries and keys are.
"""

import pytest
import torch

from laconic.numerics.lowrank import (
    affine_moment,
    balance,
    break_even_rank,
    identity_components,
    rank_for,
    svd_components,
    two_sided_components,
)
from laconic.numerics.moments import quadratic_loss, shrink, square_root, truncation_losses


def problem(m: int, n: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W, X, G = (torch.randn(size, dtype=torch.float64, generator=generator) for size in [(m, n), (n, tokens), (m, 40)])
    return W, shrink(G @ G.T / 40, 0.1), X @ X.T / tokens


def optimal_losses(W: torch.Tensor, F: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """Eckart-Young on F^{1/2} W C^{1/2}: ½ Σ_{i>r} σ_i² for every r."""
    squares = torch.linalg.svdvals(square_root(F) @ W @ square_root(C)).square()
    return 0.5 * torch.stack([squares[r:].sum() for r in range(len(squares) + 1)])


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (24, 24)])
@pytest.mark.parametrize("tokens", [200, 9])  # 9 tokens leave C singular
def test_two_sided_truncation_is_optimal_at_every_rank(shape, tokens):
    W, F, C = problem(*shape, tokens)
    A, B = two_sided_components(W, F, C)
    best = optimal_losses(W, F, C)
    for rank in range(A.shape[1] + 1):
        assert quadratic_loss(W - A[:, :rank] @ B[:rank], F, C) == pytest.approx(best[rank].item(), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_a_singular_gradient_moment_is_handled(shape):
    W, _, C = problem(*shape, 100)
    g = torch.randn(shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    F = g @ g.T
    A, B = two_sided_components(W, F, C)
    best = optimal_losses(W, F, C)
    assert quadratic_loss(W - A[:, :2] @ B[:2], F, C) == pytest.approx(best[2].item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_full_rank_gives_the_matrix_back(shape):
    W, F, C = problem(*shape, 200)
    A, B = two_sided_components(W, F, C)
    assert torch.allclose(A @ B, W, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_nothing_known_of_the_inputs_falls_back_to_finite_factors(shape):
    W, F, _ = problem(*shape, 50)
    A, B = two_sided_components(W, F, torch.zeros(shape[1], shape[1], dtype=torch.float64))
    assert torch.isfinite(A).all()
    assert torch.isfinite(B).all()
    assert torch.allclose(A @ B, W, atol=1e-8)


def test_losses_of_all_ranks_equal_the_loss_of_each():
    W, F, C = problem(14, 9, 60)
    A, B = svd_components(W)
    losses = truncation_losses(A, B, F, C)
    for rank in range(10):
        assert losses[rank].item() == pytest.approx(quadratic_loss(W - A[:, :rank] @ B[:rank], F, C), abs=1e-10)


def test_diagonal_moments_give_what_their_full_counterparts_give():
    W, _, _ = problem(8, 12, 30)
    f, c = torch.rand(8).double() + 0.1, torch.rand(12).double() + 0.1
    A, B = two_sided_components(W, f, c)
    A_full, B_full = two_sided_components(W, torch.diag(f), torch.diag(c))
    assert torch.allclose(A[:, :3] @ B[:3], A_full[:, :3] @ B_full[:3])


def test_balancing_changes_the_factors_but_not_the_product():
    W, _, _ = problem(8, 12, 30)
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    A, B = balance(svd_components(W)._replace(A=U * s, B=Vt))
    assert torch.allclose(A.norm(dim=0), B.norm(dim=1))
    assert torch.allclose(A @ B, W)


def test_break_even_is_where_factors_stop_being_smaller():
    for m, n in [(384, 384), (1536, 384), (7, 5)]:
        rank = break_even_rank(m, n)
        assert rank * (m + n) < m * n <= (rank + 1) * (m + n)


def test_no_rank_is_lost_to_floating_point():
    assert rank_for(0.29, 1600, 1600, multiple=8) == 232
    assert rank_for(0.575, 6400, 1600, multiple=8) == 736


@pytest.mark.parametrize(("keep", "rank"), [(0.5, 96), (0.45, 80), (0.01, 1), (0.02, 3), (1.0, 192)])
def test_ranks_round_down_to_a_multiple_and_never_to_nothing(keep, rank):
    assert rank_for(keep, 384, 384, multiple=16) == rank


D = 12


def vectors(count: int, seed: int, dead: int = 0) -> torch.Tensor:
    """(D, count) with directions of uneven size, the first `dead` of them empty."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=generator, dtype=torch.float64)
    x = torch.randn(D, count, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, D)[:, None]
    x = mixing @ x + 0.3
    x[:dead] = 0
    return x


def moment(x: torch.Tensor) -> torch.Tensor:
    return x @ x.T / x.shape[1]


def least_error(product: torch.Tensor, rank: int) -> torch.Tensor:
    """The error of the best approximation of `product` of this rank, by Eckart & Young."""
    return torch.linalg.svdvals(product)[rank:].norm()


# Of full rank, with fewer vectors than dimensions on one side or on both, and with dead dimensions.
@pytest.mark.parametrize(("queries", "keys", "dead"), [(60, 40, 0), (5, 40, 0), (40, 5, 0), (7, 6, 0), (60, 40, 4)])
@pytest.mark.parametrize("rank", [1, 4, 9, D])
def test_scores_are_the_best_of_that_rank(queries, keys, dead, rank):
    Q, K = vectors(queries, 0, dead), vectors(keys, 1)
    A, B = identity_components(moment(Q), moment(K))
    narrow = (A[:, :rank].T @ Q).T @ (B[:rank] @ K)
    scores = Q.T @ K
    torch.testing.assert_close(
        (scores - narrow).norm(), least_error(scores, rank), rtol=1e-6, atol=1e-6 * scores.norm()
    )


@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("contexts", [60, 5])
def test_outputs_are_the_best_of_that_rank(rank, contexts):
    W_O = vectors(30, 2).T.contiguous()
    Z = vectors(contexts, 3)
    A, B = identity_components(W_O.T @ W_O, moment(Z))
    narrow = (W_O @ A[:, :rank]) @ (B[:rank] @ Z)
    whole = W_O @ Z
    torch.testing.assert_close((whole - narrow).norm(), least_error(whole, rank), rtol=1e-6, atol=1e-6 * whole.norm())


def test_the_formula_of_the_paper_where_it_has_its_inverses():
    """M = C_q^{-1/2} SVD_r(C_q^{1/2} C_k^{1/2}) C_k^{-1/2}."""

    def power(C: torch.Tensor, exponent: float) -> torch.Tensor:
        values, axes = torch.linalg.eigh(C)
        return axes * values**exponent @ axes.T

    C_q, C_k = (moment(vectors(80, seed)) + 0.1 * torch.eye(D) for seed in (0, 1))
    U, s, Vt = torch.linalg.svd(power(C_q, 0.5) @ power(C_k, 0.5))
    expected = power(C_q, -0.5) @ (U[:, :5] * s[:5]) @ Vt[:5] @ power(C_k, -0.5)
    A, B = identity_components(C_q, C_k)
    torch.testing.assert_close(A[:, :5] @ B[:5], expected)


def test_a_head_that_saw_nothing_stays_finite():
    nothing = torch.zeros(D, D)
    A, B = identity_components(nothing, nothing)
    torch.testing.assert_close(A @ B, torch.eye(D, dtype=torch.float64))
    A, B = identity_components(nothing, moment(vectors(50, 0)))
    assert A.isfinite().all() and B.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
def test_the_moment_of_what_a_layer_gives(bias):
    x, W = vectors(50, 0), vectors(20, 1).T.contiguous()
    b = torch.linspace(-2, 3, 20) if bias else None
    y = W @ x + (0 if b is None else b[:, None])
    torch.testing.assert_close(affine_moment(W, b, moment(x), x.mean(1)), moment(y))
