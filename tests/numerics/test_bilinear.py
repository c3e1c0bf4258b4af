"""The narrower head: as good as a truncated SVD of all scores, whatever the queries and keys are."""

import pytest
import torch

from laconic.numerics.lowrank import affine_moment, identity_components

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
