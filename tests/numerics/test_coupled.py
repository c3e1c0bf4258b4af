"""The coupled refit against the linear system written down, and against rows fitted one by one."""

import pytest
import torch

from laconic.numerics.refit import inverse, refit, refit_coupled


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
