"""Roots and shrinkage of second moments, full and diagonal."""

import pytest
import torch

from laconic.numerics.moments import multiply, shrink, square_root, square_roots


def moment(n: int, samples: int) -> torch.Tensor:
    X = torch.randn(n, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return X @ X.T / samples


def test_roots_invert_each_other_and_square_to_the_matrix():
    S = moment(12, 40)
    root, inverse = square_roots(S)
    assert torch.allclose(root @ root, S, atol=1e-12)
    assert torch.allclose(root @ inverse, torch.eye(12, dtype=torch.float64), atol=1e-10)


def test_roots_of_a_singular_matrix_are_finite():
    root, inverse = square_roots(moment(12, 5))
    assert torch.isfinite(root).all()
    assert torch.isfinite(inverse).all()


@pytest.mark.parametrize(
    "function", [square_root, lambda S: square_roots(S)[0], lambda S: square_roots(S)[1], lambda S: shrink(S, 0.3)]
)
def test_a_diagonal_moment_is_its_full_counterpart(function):
    d = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    assert torch.allclose(function(d), function(torch.diag(d)).diagonal())


def test_times_agrees_on_both_forms():
    d = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    X = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    assert torch.equal(multiply(d, X), multiply(torch.diag(d), X))


def test_shrinking_keeps_the_trace_and_raises_the_smallest_eigenvalue():
    S = moment(10, 4)
    shrunk = shrink(S, 0.1)
    assert torch.isclose(shrunk.trace(), S.trace())
    assert torch.linalg.eigvalsh(shrunk)[0] > 0.09 * S.diagonal().mean()


def test_a_dead_moment_becomes_the_identity():
    assert torch.equal(shrink(torch.zeros(4, 4), 0.1), torch.eye(4, dtype=torch.float64))
    assert torch.equal(shrink(torch.zeros(4), 0.1), torch.ones(4, dtype=torch.float64))
