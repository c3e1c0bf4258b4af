"""A shrunk moment is the mean over the own rows and rows with the shared moment, and is positive definite."""

import torch

from laconic.numerics.pooling import isotropic_moments, pool_moments, shrink_towards


def test_a_shrunk_moment_is_that_of_own_rows_and_shared_ones():
    own, shared = torch.randn(3, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    C, S = own.T @ own / 3, shared.T @ shared / 40
    # 80 rows with the moment S, if each of the shared ones counts twice.
    rows = torch.cat([own, shared, shared])
    torch.testing.assert_close(shrink_towards(C, S, n=3, kappa=80), rows.T @ rows / 83)
    assert torch.linalg.eigvalsh(C)[0] < 1e-12 < torch.linalg.eigvalsh(shrink_towards(C, S, n=3, kappa=5))[0]
    assert torch.equal(shrink_towards(torch.zeros_like(S), S, n=0, kappa=5), S)


def test_the_pooled_moment_is_that_of_all_rows():
    rows = torch.randn(9, 4, dtype=torch.float64)
    parts = rows.split([2, 0, 7])
    totals = torch.stack([part.T @ part for part in parts])
    torch.testing.assert_close(pool_moments(totals, torch.tensor([2, 0, 7])), rows.T @ rows / 9)
    assert torch.equal(pool_moments(torch.zeros(2, 3), torch.tensor([0, 0])), torch.zeros(3))


def test_a_level_has_the_same_trace():
    S = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    assert torch.equal(isotropic_moments(S), torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    assert torch.equal(isotropic_moments(S.diagonal()), torch.tensor([3.0, 3.0]))
