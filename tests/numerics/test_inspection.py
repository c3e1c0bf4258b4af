"""Counts by magnitude, spectra and similarities against plain computations on matrices small enough for them."""

import pytest
import torch

from laconic.numerics.inspection import Magnitudes, cka, effective_rank, energy_rank, singular_values


@pytest.fixture
def matrix() -> torch.Tensor:
    weight = 0.1 * torch.randn(80, 50, generator=torch.Generator().manual_seed(0))
    weight[:4] = 0
    return weight


def test_magnitudes_equal_those_of_the_sorted_weights(matrix: torch.Tensor):
    found, sizes = Magnitudes.measure(matrix), matrix.double().abs().flatten().sort(descending=True).values
    assert (found.number, found.zeros, found.largest) == (4000, 200, sizes[0].item())
    for threshold in (0.001, 0.01, 0.1, 1.0):
        assert found.at_least(threshold) == (sizes >= threshold).double().mean().item()
    for share in (0.01, 0.1, 0.5, 1.0):
        assert found.top_share(share) == pytest.approx(
            (sizes[: int(4000 * share)].sum() / sizes.sum()).item(), rel=1e-3
        )
    assert found.quantile(0.5) == pytest.approx(sizes.median().item(), rel=0.02) and found.quantile(0.04) == 0
    w = matrix.double()
    assert found.mean == pytest.approx(w.mean().item())
    assert found.deviation == pytest.approx(w.std(correction=0).item())
    assert found.kurtosis == pytest.approx((((w - w.mean()) / w.std(correction=0)) ** 4).mean().item())
    begins, heights = found.histogram()
    assert sum(heights) == pytest.approx(0.95) and len(begins) == len(heights)


def test_magnitudes_add_up_and_powers_of_ten_are_exact(matrix: torch.Tensor):
    whole, parts = Magnitudes.measure(matrix), Magnitudes.measure(matrix[:30]) + Magnitudes.measure(matrix[30:])
    assert whole.number == parts.number and torch.equal(whole.counts, parts.counts)
    assert torch.allclose(whole.powers, parts.powers) and whole.largest == parts.largest
    edge = Magnitudes.measure(torch.tensor([0.1, 0.0999, -0.1, 1e-20, 1e20], dtype=torch.float64))
    assert edge.at_least(0.1) == 0.6 and edge.number == 5 and sum(edge.histogram()[1]) == pytest.approx(1)


def test_nothing_but_zeros_and_nothing_at_all():
    for empty in (torch.zeros(3, 3), torch.zeros(0)):
        found = Magnitudes.measure(empty)
        assert (found.at_least(0.1), found.top_share(0.1), found.quantile(0.5), found.kurtosis) == (0, 0, 0, None)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 9)])
def test_singular_values_are_those_of_the_svd(shape: tuple[int, int]):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(singular_values(weight), torch.linalg.svdvals(weight.double()), atol=1e-9)


def test_effective_rank_is_that_of_roy_and_vetterli():
    assert effective_rank(torch.ones(7).double()) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0]).double()) == pytest.approx(1)
    # p = (½, ¼, ¼): exp(½ ln 2 + ½ ln 4) = 2^1.5.
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0]).double()) == pytest.approx(2**1.5)
    assert effective_rank(torch.zeros(3).double()) == 0 == energy_rank(torch.zeros(3).double(), 0.9)


def test_energy_rank_is_the_least_that_holds_so_much():
    s = torch.tensor([3.0, 2.0, 1.0]).double()
    assert [energy_rank(s, energy) for energy in (0.5, 9 / 14, 0.9, 0.95, 1.0)] == [1, 1, 2, 3, 3]


def test_similarity_is_blind_to_rotation_and_scale_and_sees_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(100, 300, generator=generator), torch.randn(100, 200, generator=generator)
    turned = 3 * X @ torch.linalg.qr(torch.randn(300, 300, generator=generator))[0] + 5
    found = cka([X, turned, Y, torch.zeros(100, 2)])
    assert torch.allclose(found[:2, :2], torch.ones(2, 2).double(), atol=1e-4)
    # With fewer rows than features the biased estimate would be above 0.7.
    assert found[0, 2].abs() < 0.1 and torch.equal(found, found.T) and not found[3].any()
    with pytest.raises(ValueError, match="at least 4 rows"):
        cka([X[:3]])


def test_similarity_is_the_unbiased_estimate_written_out():
    X, Y = (torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))

    def hsic(K: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
        n, one = len(K), torch.ones(len(K)).double()
        K, L = K - K.diag().diag(), L - L.diag().diag()
        return (K @ L).trace() + one @ K @ one * (one @ L @ one) / (n - 1) / (n - 2) - 2 / (n - 2) * one @ K @ L @ one

    K, L = X @ X.T, Y @ Y.T
    expected = hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()
    assert torch.allclose(cka([X, Y])[0, 1], expected)
