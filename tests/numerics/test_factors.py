"""The factors of a moment against their equation, in both precisions, and the fall-back to fp64."""

import pytest
import torch

from laconic.numerics import factors
from laconic.numerics.factors import UnitFactor
from laconic.numerics.moments import root_factor
from laconic.numerics.obs import damp
from laconic.numerics.triangle import PANEL
from tests.numerics.test_obs import hessian


@pytest.mark.parametrize("n", [1, 9, PANEL + 5])
def test_the_factors_multiply_to_the_moment(n: int) -> None:
    S = damp(hessian(n), 0.01)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    factor = UnitFactor.from_moment(S, order)
    R = factor.R.dense()
    assert torch.equal(R, R.triu())
    assert torch.equal(R.diagonal(), torch.ones(n).double())
    assert torch.allclose(R * factor.D @ R.T, S[order][:, order])
    assert torch.allclose(factor.inverse_diagonal(), torch.linalg.inv(S).diagonal()[order])


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "SINGLE_FROM", 2)


def test_in_fp32_they_are_exact_to_four_digits_for_features_of_any_size(single: None) -> None:
    scale = 1e-18 * torch.logspace(-5, 5, 300).double()
    S = damp(hessian(300, 900), 0.01)
    S = S * scale * scale[:, None]
    factor = UnitFactor.from_moment(S)
    assert factor.R.dense().dtype == torch.float32
    assert torch.allclose(
        factor.inverse_diagonal() * scale**2, torch.linalg.inv(S / scale / scale[:, None]).diagonal(), rtol=1e-4
    )
    exact = torch.linalg.cholesky(S.flip(0, 1)).flip(0, 1)
    assert torch.allclose(factor.D, exact.diagonal().square(), rtol=1e-4)
    assert torch.allclose(
        factor.R.dense().double() / scale[:, None] * scale, exact / exact.diagonal() / scale[:, None] * scale, atol=1e-4
    )


@pytest.mark.parametrize("moment", ["ill-conditioned", "zero column"])
def test_moments_that_fp32_cannot_factor_are_factored_in_fp64(single: None, moment: str) -> None:
    S = hessian(40, 90)
    if moment == "ill-conditioned":
        S[0] = S[:, 0] = 0
        S[0, 0], S[1, 0], S[0, 1] = S[1, 1] * (1 + 1e-6), S[1, 1], S[1, 1]
        S[0, 2:] = S[2:, 0] = S[1, 2:]
    else:
        S[3] = S[:, 3] = 0
    factor = UnitFactor.from_moment(S)
    exact = root_factor(S.flip(0, 1)).flip(0, 1)
    assert torch.allclose(factor.D, exact.diagonal().square(), rtol=1e-9)
    assert factor.R.dense().dtype == torch.float64
    assert torch.allclose(factor.R.dense(), exact / exact.diagonal(), rtol=1e-9, atol=1e-12)


def test_the_ridge_is_added_to_the_diagonal() -> None:
    S = hessian(30)
    factor = UnitFactor.from_moment(S, ridge=0.5)
    R = factor.R.dense()
    assert torch.allclose(R * factor.D @ R.T, S + 0.5 * torch.eye(30))


def test_in_fp32_the_panels_of_a_factor_fit_together(single: None) -> None:
    S = damp(hessian(2 * PANEL + 9, 900), 0.01)
    order = torch.randperm(len(S), generator=torch.Generator().manual_seed(0))
    factor = UnitFactor.from_moment(S, order)
    R = factor.R.dense()
    assert R.dtype == torch.float32
    assert torch.equal(R, R.triu())
    assert torch.allclose(R.double() * factor.D @ R.T.double(), S[order][:, order], atol=1e-5 * S.max().item())


def test_the_estimated_diagonal_of_the_inverse_is_off_by_a_tenth() -> None:
    factor = UnitFactor.from_moment(damp(hessian(300, 900), 0.01))
    ratios = (factor.estimate_inverse_diagonal() / factor.inverse_diagonal()).log()
    assert ratios.abs().max() < 0.5
    assert ratios.std() < 0.13
    assert ratios.mean().abs() < 0.03
