"""Figures with errors, drawn to their mean: DerSimonian and Laird by hand, and on true values that are known."""

from math import inf

import pytest
import torch

from laconic.compress.kl_metric import shrink_estimates


def test_dersimonian_and_laird_by_hand() -> None:
    """Three figures, worked out on paper."""
    y = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    s = torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)
    # ȳ = (0 + 1 + 5) / 6 = 1; Q = 4 + 0 + 16 = 20; τ² = (20 − 2) / (6 − 18 / 6) = 6.
    v = torch.tensor([1 / 6.25, 1 / 7, 1 / 7], dtype=torch.float64)
    mean = float((v * y).sum() / v.sum())
    found, guesses = shrink_estimates(y, s)
    assert found == pytest.approx(mean)
    expected = [mean + (0 - mean) * 6 / 6.25, mean + (1 - mean) * 6 / 7, mean + (5 - mean) * 6 / 7]
    torch.testing.assert_close(guesses, torch.tensor(expected, dtype=torch.float64))


def test_what_chance_brings_about_is_no_difference() -> None:
    """Q = 2 of three figures, where chance alone gives 2."""
    y = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    found, guesses = shrink_estimates(y, torch.ones(3, dtype=torch.float64))
    assert found == pytest.approx(0.0)
    assert torch.equal(guesses, torch.full_like(guesses, found))


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_guesses_are_nearer_to_the_truth(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = drawn = 0.0
    for _ in range(200):
        truth = 1 + spread * torch.randn(8, generator=generator, dtype=torch.float64)
        s = 0.2 + torch.rand(8, generator=generator, dtype=torch.float64)
        y = truth + s * torch.randn(8, generator=generator, dtype=torch.float64)
        raw += float((y - truth).square().sum())
        drawn += float((shrink_estimates(y, s)[1] - truth).square().sum())
    assert drawn < raw * (1.0 if spread > 1 else 0.5)


def test_a_figure_that_says_nothing_is_the_mean_of_the_others() -> None:
    y = torch.tensor([1.0, 3.0, 50.0], dtype=torch.float64)
    found, guesses = shrink_estimates(y, torch.tensor([0.1, 0.1, inf], dtype=torch.float64))
    assert found == pytest.approx(2.0)
    assert guesses[2] == pytest.approx(found)
    assert shrink_estimates(y[:1], torch.ones(1, dtype=torch.float64))[1].tolist() == [1.0]
