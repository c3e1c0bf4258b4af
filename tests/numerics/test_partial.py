"""What is left of a weight where some of the others are missing, against regressions with some missing."""

import pytest
import torch

from laconic.numerics.obs import correlations, residual_curvature


def moment(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + seed)
    X = torch.randn(200, n, dtype=torch.float64, generator=generator)
    X = X @ torch.randn(n, n, dtype=torch.float64, generator=generator)
    return X.T @ X / 200


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_it_is_the_least_error_of_making_up_with_some_missing(missing: float) -> None:
    """min_b E (e − δ∘b / (1 − s))^T A (e − δ∘b / (1 − s)), over every pattern δ of what is there, by enumeration."""
    F, H = moment(2), moment(3)
    A, at = torch.kron(F, H), 4
    others = [k for k in range(6) if k != at]
    S, r = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for pattern in range(2**5):
        there = torch.tensor([pattern >> k & 1 for k in range(5)], dtype=torch.float64)
        chance = (1 - missing) ** there.sum() * missing ** (5 - there.sum())
        scaled = there / (1 - missing)
        S += chance * torch.outer(scaled, scaled) * A[others][:, others]
        r += chance * scaled * A[others, at]
    expected = A[at, at] - r @ torch.linalg.solve(S, r)
    found = residual_curvature(correlations(F), correlations(H), missing)
    assert found.shape == (2, 3)
    assert found[1, 1].item() == pytest.approx(expected.item(), rel=1e-8)


def test_it_rises_from_the_surgeons_to_the_diagonal() -> None:
    F, H = moment(8), moment(20)
    known = correlations(F), correlations(H)
    steps = torch.stack([residual_curvature(*known, missing) for missing in (0.0, 0.2, 0.5, 0.8, 0.99, 1 - 1e-9)])
    assert (steps.diff(dim=0) > 0).all()
    surgeon = 1 / torch.outer(torch.linalg.inv(F).diagonal(), torch.linalg.inv(H).diagonal())
    assert torch.allclose(steps[0], surgeon)
    assert torch.allclose(steps[-1], torch.outer(F.diagonal(), H.diagonal()), rtol=1e-5)


def test_what_is_independent_makes_up_for_nothing() -> None:
    a, b = torch.rand(4, dtype=torch.float64) + 0.1, torch.rand(7, dtype=torch.float64) + 0.1
    for F in (a, torch.diag(a)):
        for H in (b, torch.diag(b)):
            assert torch.allclose(residual_curvature(correlations(F), correlations(H), 0.4), torch.outer(a, b))


def test_rows_alone_make_up_where_outputs_are_independent() -> None:
    H = moment(9)
    found = residual_curvature(correlations(torch.ones(3)), correlations(H), 0.6)
    assert torch.allclose(found, found[:1].expand(3, 9))
    gamma = 1.5
    schur = 1 / torch.linalg.inv(H + gamma * torch.diag(H.diagonal())).diagonal() - gamma * H.diagonal()
    assert torch.allclose(found[0], schur)
