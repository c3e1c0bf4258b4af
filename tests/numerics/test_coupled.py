"""The coupled refit against the linear system written down, and against rows fitted one by one."""

import pytest
import torch

from laconic.numerics.coupled import Curvature, refit_coupled
from laconic.numerics.refit import inverse, refit


def moment(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * n, n, dtype=torch.float64, generator=generator)
    X = X @ (torch.eye(n) + 0.3 * torch.randn(n, n, dtype=torch.float64, generator=generator))
    return X.T @ X / (4 * n)


def test_it_is_the_solution_of_the_kronecker_system() -> None:
    """(F ⊗ H)_KK z_K = (F ⊗ H)_K: w, row-major vec, K all weights that stay."""
    F, H = moment(6, 1), moment(9, 2)
    W, mask = torch.randn(6, 9, dtype=torch.float64), torch.rand(6, 9) < 0.5
    A, K = torch.kron(F, H), mask.reshape(-1).nonzero().squeeze(1)
    expected = torch.zeros(54, dtype=torch.float64)
    expected[K] = torch.linalg.solve(A[K][:, K], A[K] @ W.reshape(-1))
    Z = refit_coupled(W, mask, Curvature(F, H))
    assert not Z[~mask].any()
    assert torch.allclose(Z, expected.view(6, 9), atol=0.1)

    def loss(E: torch.Tensor) -> float:
        return (E * (F @ E @ H)).sum().item()

    assert loss(W - Z) == pytest.approx(loss(W - expected.view(6, 9)), rel=1e-4)


def test_rows_that_are_not_coupled_are_fitted_one_by_one() -> None:
    F, H = torch.diag(torch.rand(10, dtype=torch.float64) + 0.1), moment(20, 3)
    W, mask = torch.randn(10, 20, dtype=torch.float64), torch.rand(10, 20) < 0.5
    assert torch.allclose(refit_coupled(W, mask, Curvature(F, H)), refit(W, mask, H, inverse(H)), atol=1e-2)


def test_all_or_nothing() -> None:
    curvature = Curvature(moment(5, 4), moment(7, 5))
    W = torch.randn(5, 7, dtype=torch.float64)
    assert torch.equal(refit_coupled(W, torch.ones(5, 7, dtype=torch.bool), curvature), W)
    assert not refit_coupled(W, torch.zeros(5, 7, dtype=torch.bool), curvature).any()
