"""Weighted k-means of rows against the exact optimum by dynamic programming."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laconic.numerics import kmeans as module
from laconic.numerics.kmeans import assign_codes, kmeans


def numbers(rows: int, n: int, power: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + n)
    W = torch.randn(rows, n, generator=generator) * torch.randn(rows, n, generator=generator)
    return W, torch.rand(rows, n, generator=generator).pow(power) + 1e-6


def error(W: Tensor, h: Tensor, V: Tensor) -> Tensor:
    chosen = V.gather(1, assign_codes(W, V).long())
    return (h.double() * (W.double() - chosen).square()).sum(1)


def optimum(w: Tensor, h: Tensor, k: int) -> float:
    """The least error of one row: D_c(j) = min_i D_{c−1}(i) + cost of a single value for i … j − 1."""
    w, order = w.double().sort()
    h, n = h.double()[order], len(w)
    cost = torch.full((n + 1, n + 1), torch.inf, dtype=torch.float64)
    for i in range(n + 1):
        cost[i, i] = 0
        for j in range(i + 1, n + 1):
            mean = (h[i:j] * w[i:j]).sum() / h[i:j].sum()
            cost[i, j] = (h[i:j] * (w[i:j] - mean).square()).sum()
    D = cost[0]
    for _ in range(k - 1):
        D = (D[:, None] + cost).amin(0)
    return D[n].item()


@pytest.mark.parametrize("power", [1.0, 4.0])
@pytest.mark.parametrize("k", [4, 8])
def test_it_is_within_a_few_percent_of_the_optimum(k: int, power: float) -> None:
    W, h = numbers(12, 48, power)
    optima = [optimum(w, weights, k) for w, weights in zip(W, h, strict=True)]
    best = torch.tensor(optima, dtype=torch.float64)
    found = error(W, h, kmeans(W, h, k))
    assert (found >= best * (1 - 1e-9)).all()
    assert (found / best).mean() < 1.04


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 6))
def test_it_is_never_worse_than_where_it_starts(rows: int, n: int, k: int) -> None:
    W, h = numbers(rows, n)
    start = torch.linspace(-1, 1, k).expand(rows, k)
    V = kmeans(W, h, k, [start])
    assert torch.isfinite(V).all()
    assert torch.equal(V, V.sort(dim=1).values)
    assert (error(W, h, V) <= error(W, h, start.double()) + 1e-9).all()


def test_as_many_values_as_numbers_are_those_numbers() -> None:
    W = torch.tensor([[3.0, -1.0, 2.0, -1.0], [5.0, 5.0, 5.0, 5.0]])
    V = kmeans(W, torch.rand(2, 4) + 0.1, 4)
    assert error(W, torch.ones(2, 4), V).max() < 1e-12


def test_what_counts_for_nothing_has_no_say() -> None:
    W, h = numbers(3, 40)
    V = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    exact = V[torch.arange(20) % 4].expand(3, 20)
    W[:, ::2], h[:, 1::2] = exact, 0
    torch.testing.assert_close(kmeans(W, h, 4), V.expand(3, 4).double())
    assert torch.isfinite(kmeans(W, torch.zeros(3, 40), 4)).all()


def test_it_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    W, h = numbers(7, 40)
    whole = kmeans(W, h, 4), assign_codes(W, kmeans(W, h, 4))
    monkeypatch.setattr(module, "BLOCK", 80)
    blocks = kmeans(W, h, 4), assign_codes(W, kmeans(W, h, 4))
    assert all(torch.equal(one, other) for one, other in zip(whole, blocks, strict=True))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_size_of_the_weights_does_not_matter(scale: float) -> None:
    W, h = numbers(4, 40)
    torch.testing.assert_close(kmeans(W, h.double() * scale, 4), kmeans(W, h.double(), 4))


def test_the_code_is_that_of_the_nearest_value() -> None:
    W, _ = numbers(5, 60)
    V = torch.randn(5, 8).sort(dim=1).values
    expected = (W[..., None] - V[:, None]).abs().argmin(-1)
    assert torch.equal(assign_codes(W, V).long(), expected)
