"""The refit of each row against least squares of that row alone.

The coupled refit against the linear system written down, and against rows fitted one by one.
"""

import pytest
import torch

from laconic.numerics import refit as refitting
from laconic.numerics.coupled_refit import refit_coupled
from laconic.numerics.obs import damp
from laconic.numerics.refit import inverse, refine, refit


def problem(m: int, n: int, sparsity: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * n)
    X = torch.randn(3 * n, n, dtype=torch.float64, generator=generator)
    X = X @ (torch.eye(n) + 0.3 * torch.randn(n, n, dtype=torch.float64, generator=generator))
    W = torch.randn(m, n, dtype=torch.float64, generator=generator)
    # Rows of very different support, the first with none and the second with all of it.
    mask = torch.rand(m, n, generator=generator) > torch.linspace(sparsity / 2, 1, m)[:, None] * 1.02
    mask[0], mask[1] = False, True
    return W, mask, X


@pytest.mark.parametrize("shape", [(12, 20), (40, 24), (9, 130)])
@pytest.mark.parametrize("direct", [0.0, 0.25, 1.0])
def test_it_is_lstsq_of_every_row(shape: tuple[int, int], direct: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refitting, "DIRECT", direct)
    monkeypatch.setattr(refitting, "NUMBERS", 500)
    W, mask, X = problem(*shape, 0.5)
    H = X.T @ X / len(X)
    Z = refit(W, mask, H, inverse(H))
    assert not Z[~mask].any()
    assert torch.allclose(Z[1], W[1])
    for w, z, kept in zip(W, Z, mask, strict=True):
        best = torch.linalg.lstsq(X[:, kept], X @ w).solution if kept.any() else w[kept]
        error, least = X @ w - X[:, kept] @ z[kept], X @ w - X[:, kept] @ best
        assert error.norm() <= least.norm() * (1 + 1e-6) + 1e-9
        assert torch.allclose(z[kept], best, atol=1e-3 * w.abs().max().item())


def test_the_residual_has_no_part_on_the_support() -> None:
    """The normal equations: [(W − Z) H]_K = 0."""
    W, mask, X = problem(30, 60, 0.5)
    H = damp(X.T @ X / len(X), 0.01)
    slope = (W - refit(W, mask, H, inverse(H))) @ H
    assert slope[mask].abs().max() < 1e-4 * slope.abs().max()


def test_a_singular_moment_is_fitted_with_damping() -> None:
    """With fewer tokens than columns; what is not determined stays near what it was."""
    W, mask, X = problem(12, 40, 0.5)
    C = X[:15].T @ X[:15] / 15
    H = damp(C, 0.01)
    Z = refit(W, mask, H, inverse(H))
    assert torch.isfinite(Z).all()
    assert ((W - Z) @ C * (W - Z)).sum() < ((W - W * mask) @ C * (W - W * mask)).sum()


def losses(E: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    return ((E @ H) * E).sum(1)


@pytest.mark.parametrize("numbers", [100, 2**23])
def test_from_a_start_it_ends_near_the_least_of_every_row(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refitting, "NUMBERS", numbers)
    W, mask, X = problem(30, 60, 0.5)
    H = damp(X.T @ X / len(X), 0.01)
    found = refine(W, mask, H, W * mask)
    least = losses(W - refit(W, mask, H, inverse(H)), H)
    assert not found[~mask].any()
    assert torch.equal(found[1], W[1])
    assert (losses(W - found, H) <= 1.05 * least + 1e-12).all()
    assert (losses(W - W * mask, H) > 1.1 * least).sum() > 20


def test_a_start_that_is_the_best_already_is_kept() -> None:
    W, mask, X = problem(30, 60, 0.5)
    H = damp(X.T @ X / len(X), 0.01)
    best = torch.stack(
        [
            torch.zeros(60, dtype=W.dtype).masked_scatter(kept, torch.linalg.solve(H[kept][:, kept], (H @ w)[kept]))
            for w, kept in zip(W, mask, strict=True)
        ]
    )
    assert torch.equal(refine(W, mask, H, best), best)


def moment(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, dtype=torch.float64, generator=generator)
    X = X @ (torch.eye(n) + 0.3 * torch.randn(n, n, dtype=torch.float64, generator=generator))
    return X.T @ X / (4 * n)


def matrix(m: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and a mask that keeps about half."""
    generator = torch.Generator().manual_seed(m * n)
    W = torch.randn(m, n, dtype=torch.float64, generator=generator)
    return W, torch.rand(m, n, generator=generator) < 0.5


def loss(E: torch.Tensor, F: torch.Tensor, H: torch.Tensor) -> float:
    return (E * (F @ E @ H)).sum().item()


@pytest.mark.parametrize("shape", [(6, 9), (9, 4), (1, 12)])
def test_it_is_the_solution_of_the_kronecker_system(shape: tuple[int, int]) -> None:
    """(F ⊗ H)_KK z_K = (F ⊗ H)_K: w, row-major vec, K all weights that stay."""
    F, H = moment(shape[0], 1), moment(shape[1], 2)
    W, mask = matrix(*shape)
    A, K = torch.kron(F, H), mask.reshape(-1).nonzero().squeeze(1)
    expected = torch.zeros(W.numel(), dtype=torch.float64)
    expected[K] = torch.linalg.solve(A[K][:, K], A[K] @ W.reshape(-1))
    Z = refit_coupled(W, mask, F, H)
    assert not Z[~mask].any()
    assert loss(W - Z, F, H) == pytest.approx(loss(W - expected.view(shape), F, H), rel=1e-3)
    assert loss(W - Z, F, H) < loss(W - W * mask, F, H)


def test_rows_that_are_not_coupled_are_fitted_one_by_one() -> None:
    F, H = torch.diag(torch.linspace(0.1, 2, 10, dtype=torch.float64)), moment(20, 3)
    W, mask = matrix(10, 20)
    together, apart = refit_coupled(W, mask, F, H), refit(W, mask, H, inverse(H))
    assert loss(W - together, F, H) == pytest.approx(loss(W - apart, F, H), rel=1e-3)


def test_all_or_nothing() -> None:
    F, H = moment(5, 4), moment(7, 5)
    W, _ = matrix(5, 7)
    assert torch.equal(refit_coupled(W, torch.ones(5, 7, dtype=torch.bool), F, H), W)
    assert not refit_coupled(W, torch.zeros(5, 7, dtype=torch.bool), F, H).any()
