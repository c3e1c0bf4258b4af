"""The divergence between large softmaxes equals the direct form in float64, in float32 as well."""

from importlib import import_module

import pytest
import torch

from laconic.numerics.distributions import CATEGORICAL
from laconic.numerics.softmax_kl import compare_softmax, negative_log_likelihood, softmax_kl

CLASSES = 20_000


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-2, 1e-3])
def test_float32_loses_nothing_where_models_are_similar(distance: float):
    z = logits(0)
    # A shift of all logits of a row is no difference.
    w = z + distance * logits(1, 1.0) + 5
    exact = CATEGORICAL.divergence(z, w)
    assert torch.allclose(softmax_kl(z, w), exact, rtol=1e-9, atol=1e-13)
    rounded, other = z.float(), w.float()
    same = CATEGORICAL.divergence(rounded.double(), other.double())
    assert torch.allclose(softmax_kl(rounded, other), same, rtol=1e-3, atol=2e-8)


def test_the_same_logits_have_no_divergence():
    assert softmax_kl(logits(0).float(), logits(0).float()).tolist() == [0] * 6


def test_differences_that_float32_cannot_hold_are_computed_in_float64():
    z, w = logits(0).float(), logits(0).float()
    z[:3] *= 40
    w[:3] = -z[:3]
    found, exact = softmax_kl(z, w), CATEGORICAL.divergence(z.double(), w.double())
    assert torch.allclose(found, exact, rtol=1e-6) and found[:3].min() > 100


def test_likelihoods_are_those_of_float64():
    z, targets = logits(2), torch.arange(6)
    exact = -z.log_softmax(-1)[targets, targets]
    assert torch.allclose(negative_log_likelihood(z.float(), targets), exact, atol=1e-5)


@pytest.mark.parametrize("distance", [0.0, 1e-2, 1.0, 200.0])
def test_a_comparison_has_the_likelihoods_and_decisions_of_both(distance: float):
    z = logits(0)
    w, targets = z + distance * logits(1, 1.0) + 5, torch.arange(6)
    found = compare_softmax(z.float(), w.float(), targets)
    assert torch.equal(found.kl, softmax_kl(z.float(), w.float()))
    assert torch.allclose(found.reference_nats, -z.log_softmax(-1)[targets, targets], rtol=1e-5)
    assert torch.allclose(found.nats, -w.log_softmax(-1)[targets, targets], rtol=1e-5)
    assert torch.equal(found.same, z.argmax(-1) == w.argmax(-1))


def test_large_softmaxes_are_compared_row_by_row(monkeypatch: pytest.MonkeyPatch):
    z, w, targets = logits(0), logits(1), torch.arange(6)
    whole = compare_softmax(z, w, targets)
    monkeypatch.setattr(import_module("laconic.numerics.softmax_kl"), "ELEMENTS", 1)
    for one, other in zip(whole, compare_softmax(z, w, targets), strict=True):
        assert torch.allclose(one.double(), other.double())
