"""Numbers that several weights share: their least squares against a solution written out in full."""

import pytest
import torch

from laconic.numerics.tied import TiedWeights, grid_indices, refit_tied
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
