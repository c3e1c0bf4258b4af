"""The best values for given codes, against least squares on inputs that have the same second moment."""

import pytest
import torch
from torch import Tensor

from laconic.numerics.tied import refit_codebook

M, N, K = 5, 12, 3


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """A matrix, the places of its weights (K for a zero), and inputs (tokens, in)."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(M, N, dtype=torch.float64, generator=generator)
    X = torch.randn(40, N, dtype=torch.float64, generator=generator) @ torch.randn(N, N, dtype=torch.float64)
    return W, torch.randint(K + 1, (M, N), generator=generator), X


def test_each_row_is_a_least_squares_problem_of_its_own() -> None:
    W, places, X = problem()
    V = refit_codebook(W, places, torch.zeros(M, K), X.T @ X, torch.ones(M).double())
    for w, here, values in zip(W, places, V, strict=True):
        sums = torch.stack([X[:, here == value].sum(1) for value in range(K)], 1)
        expected = torch.linalg.lstsq(sums, X @ w).solution
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_rows_that_share_a_table_are_one_problem_by_how_much_each_counts() -> None:
    W, places, X = problem()
    F = torch.tensor([1.0, 4.0, 0.25, 9.0, 1.0]).double()
    (values,) = refit_codebook(W, places, torch.zeros(1, K), X.T @ X, F)
    sums, targets = [], []
    for weight, w, here in zip(F.sqrt(), W, places, strict=True):
        sums.append(weight * torch.stack([X[:, here == value].sum(1) for value in range(K)], 1))
        targets.append(weight * X @ w)
    expected = torch.linalg.lstsq(torch.cat(sums), torch.cat(targets)).solution
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tables", [1, M])
def test_what_nothing_depends_on_stays(tables: int) -> None:
    W, places, X = problem()
    V = torch.arange(tables * K).view(tables, K).double()
    unused = places.masked_fill(places == 1, 0)
    kept = refit_codebook(W, unused, V, X.T @ X, torch.ones(M).double())
    torch.testing.assert_close(kept[:, 1], V[:, 1])
    silent = refit_codebook(W, places, V, torch.zeros(N, N).double(), torch.ones(M).double())
    torch.testing.assert_close(silent, V)
