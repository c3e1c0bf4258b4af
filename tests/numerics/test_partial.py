"""What is left of an input where some of the others are missing, against regressions with some missing."""

import pytest
import torch

from laconic.numerics.partial import unexplained


def moment(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    X = torch.randn(200, n, dtype=torch.float64, generator=generator)
    X = X @ torch.randn(n, n, dtype=torch.float64, generator=generator)
    return X.T @ X / 200


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_it_is_the_least_error_of_a_prediction_from_inputs_with_some_missing(missing: float) -> None:
    """min_b E (x_j − Σ_k b_k δ_k x_k / (1 − s))², E over x and every pattern δ of what is there, by enumeration."""
    n, j = 6, 2
    H = moment(n)
    others = [k for k in range(n) if k != j]
    S, r = torch.zeros(n - 1, n - 1, dtype=torch.float64), torch.zeros(n - 1, dtype=torch.float64)
    for pattern in range(2 ** (n - 1)):
        there = torch.tensor([pattern >> k & 1 for k in range(n - 1)], dtype=torch.float64)
        chance = (1 - missing) ** there.sum() * missing ** (n - 1 - there.sum())
        scaled = there / (1 - missing)
        S += chance * torch.outer(scaled, scaled) * H[others][:, others]
        r += chance * scaled * H[others, j]
    expected = H[j, j] - r @ torch.linalg.solve(S, r)
    assert unexplained(H, missing)[j].item() == pytest.approx(expected.item(), rel=1e-8)


def test_it_rises_from_the_surgeons_to_the_variance() -> None:
    H = moment(20)
    steps = torch.stack([unexplained(H, missing) for missing in (0.0, 0.2, 0.5, 0.8, 0.99, 1 - 1e-9)])
    assert (steps.diff(dim=0) > 0).all()
    assert torch.allclose(steps[0], 1 / torch.linalg.inv(H).diagonal())
    assert torch.allclose(steps[-1], H.diagonal(), rtol=1e-5)


def test_independent_inputs_explain_nothing() -> None:
    d = torch.rand(7, dtype=torch.float64) + 0.1
    assert torch.allclose(unexplained(torch.diag(d), 0.4), d)
    assert torch.equal(unexplained(d, 0.4), d)
