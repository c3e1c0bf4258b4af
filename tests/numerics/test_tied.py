"""Numbers that several weights share: their least squares against a solution written out in full.

The best values for given codes, against least squares on inputs that have the same second moment.
"""

import pytest
import torch
from torch import Tensor

from laconic.numerics.kmeans import refit_codebook
from laconic.numerics.scaling import TiedWeights, grid_indices, refit_tied
from tests.matrices import case


@pytest.mark.parametrize("group", [1, 5, 20, None])
def test_it_solves_the_least_squares_of_all_weights_at_once(group: int | None) -> None:
    """vec(W) = L p, and the loss is ‖(L p − vec(W*)) (I ⊗ H^{1/2})‖²."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = 6, 20
    X = torch.randn(90, columns, generator=generator).double()
    H = X.T @ X / 90
    W = torch.randn(rows, columns, generator=generator).double()
    places = grid_indices((rows, columns), group, torch.device("cpu"))
    factors = torch.randint(-3, 4, (rows, columns), generator=generator).double()
    count = int(places.max()) + 1
    found = refit_tied(W, TiedWeights(places, factors), torch.ones(count), H)
    L = torch.zeros(rows * columns, count).double()
    L[torch.arange(rows * columns), places.flatten()] = factors.flatten()
    root = torch.kron(torch.eye(rows).double(), torch.linalg.cholesky(H).T.contiguous())
    p = torch.linalg.lstsq(root @ L, root @ W.flatten(), driver="gelsd").solution
    free = (L != 0).any(0)
    least, here = ((root @ (L @ numbers - W.flatten())).square().sum().item() for numbers in (p, found))
    assert here == pytest.approx(least, rel=1e-3, abs=1e-3)
    # What no weight has stays.
    assert torch.equal(found[~free], torch.ones(int((~free).sum())).double())


def test_what_is_best_already_stays() -> None:
    matrix = case("pruned", (8, 12))
    H = torch.eye(12).double()
    places = torch.arange(96).view(8, 12)
    W = matrix.weight.double()
    found = refit_tied(W, TiedWeights(places, torch.ones(8, 12)), W.flatten(), H)
    assert torch.equal(found, W.flatten())


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
