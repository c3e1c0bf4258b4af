"""Evenly spaced grids: by hand, against brute force, and where there is little to go by."""

import itertools

import pytest
import torch

from laconic.numerics import grid_search
from laconic.numerics.grid import ALONG, MARGIN, Grid, GridSpec, dequantize, fit_grid, nearest_codes, quantize


def rounded(W: torch.Tensor, spacing: GridSpec, **about: torch.Tensor) -> torch.Tensor:
    grid = fit_grid(W, spacing, **about)
    return dequantize(quantize(W, grid), grid)


def random(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(m * n))


def error(W: torch.Tensor, V: torch.Tensor, h: torch.Tensor | None = None, bits: int = 3) -> torch.Tensor:
    """The error of every row that the search minimises: squares weighted by h, or squares and an extra term along W.

    A zero of W is one that was pruned.
    """
    E = W - V
    if h is not None:
        return (h * E.square()).sum(-1)
    h = torch.ones_like(W)
    if bits == 2:
        h = W.abs() + (W.square().sum(-1, keepdim=True) / (W != 0).sum(-1, keepdim=True).clamp(min=1)).sqrt()
    along = (h * E * W).sum(-1).square() / (h * W.square()).sum(-1).clamp(min=1e-30)
    return (h * E.square()).sum(-1) + (ALONG - 1) * along


def test_by_hand() -> None:
    """Four values 0, 1, 2, 3 are four codes of two bits, with s = 1 and z = 0; shifted by one, z = 1."""
    W = torch.tensor([[0.0, 1, 2, 3], [-1, 0, 1, 2]])
    grid = fit_grid(W, GridSpec(2, 4))
    assert grid.scale.flatten().tolist() == [1, 1]
    assert grid.zero.flatten().tolist() == [0, 1]
    assert quantize(W, grid).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert torch.equal(dequantize(quantize(W, grid), grid), W)


def test_a_symmetric_grid_has_its_odd_value_on_the_side_that_needs_it() -> None:
    W = torch.tensor([[-2.0, -1, 0, 1], [2, 1, 0, -1]])
    grid = fit_grid(W, GridSpec(2, 4, symmetric=True))
    assert torch.equal(dequantize(quantize(W, grid), grid), W)
    assert grid.scale.flatten().tolist() == [1, -1]
    assert (grid.zero == 2).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_code_is_nearer_than_the_nearest(bits: int, symmetric: bool) -> None:
    W = random(5, 24)
    grid = fit_grid(W, GridSpec(bits, 8, symmetric))
    scale, zero = grid.scale_and_zero(torch.arange(24))
    every = torch.arange(2**bits).view(-1, 1, 1)
    errors = (W - scale * (every - zero)).abs()
    chosen = (W - dequantize(quantize(W, grid), grid)).abs()
    assert torch.allclose(chosen, errors.amin(0), atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_comes_near_the_best_of_all_scales(symmetric: bool) -> None:
    """Two bits, a hundred groups; all scales on a fine net, all zero points."""
    W = random(100, 16)
    found = error(W, rounded(W, GridSpec(2, 16, symmetric)), bits=2)
    best = torch.full_like(found, torch.inf)
    zeros = [2.0] if symmetric else [0.0, 1.0, 2.0, 3.0]
    for share, zero in itertools.product(torch.linspace(0.1, 1.2, 200), zeros):
        for sign in (1, -1) if symmetric else (1,):
            scale = (sign * share * W.abs().amax(1, keepdim=True)).half().float()
            best = torch.minimum(
                best, error(W, scale * (nearest_codes(W, scale, torch.full_like(scale, zero), 2) - zero), bits=2)
            )
    # The net may be a little off where the least errors are exact.
    assert (best <= found * 1.02).all()
    assert found.sum() <= 1.05 * best.sum()


@pytest.mark.parametrize("tails", [1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [1, 7, 32, 96])
@pytest.mark.parametrize("known", [True, False])
def test_the_search_never_loses_to_the_whole_range(
    tails: int, symmetric: bool, bits: int, group: int, known: bool
) -> None:
    """By its own error, in every group; `keep` leaves out a tenth of the weights."""
    W, keep = random(40, 96) ** tails, random(96, 40).T < 1.28
    h = random(96, 1).flatten().exp() if known else None
    about = {"keep": keep} | ({} if h is None else {"importance": h})
    searched, whole = (rounded(W, GridSpec(bits, group, symmetric, clip), **about) for clip in (True, False))
    for start in range(0, 96, group):
        here = slice(start, start + group)
        ours, theirs = ((V * keep)[:, here] for V in (searched, whole))
        original, weights = (W * keep)[:, here], None if h is None else h[here]
        errors = [error(original, rounding, weights, bits) for rounding in (ours, theirs)]
        assert (errors[0] <= errors[1] * (1 + 1e-4) + 1e-9).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("group", [32, 96])
def test_a_range_is_narrowed_only_where_that_saves_much(bits: int, symmetric: bool, group: int) -> None:
    """Every group either has the whole range's grid as it is, or errs by 30 % less than on it."""
    W = torch.cat([random(40, 96), random(41, 96) ** 3])
    spacing = GridSpec(bits, group, symmetric)
    grid, whole = (fit_grid(W, spacing._replace(clip=clip)) for clip in (True, False))
    kept = (grid.scale == whole.scale) & (grid.zero == whole.zero)
    mine, theirs = (
        torch.stack([error(*parts) for parts in zip(W.split(group, 1), V.split(group, 1), strict=True)], 1)
        for V in (dequantize(quantize(W, grid), grid), dequantize(quantize(W, whole), whole))
    )
    assert (kept | (mine <= (1 - MARGIN + 1e-4) * theirs)).all()
    assert kept.any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 96])
def test_the_search_does_not_give_up_the_weights_whose_inputs_are_most_active(symmetric: bool, group: int) -> None:
    """4 bits; the second moments of inputs, unknown to the search, grow with the weights that read them."""
    W = random(300, 96)
    h = 1 + 4 * W.abs() ** 3
    searched, whole = (rounded(W, GridSpec(4, group, symmetric, clip)) for clip in (True, False))
    assert (h * (W - searched).square()).sum() <= 1.03 * (h * (W - whole).square()).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_shrink_less_where_nothing_is_known_of_their_inputs(symmetric: bool) -> None:
    """Least squares clip, and so leave ⟨w, ŵ⟩ < ‖w‖²: error along w, which inputs that w was trained on feel most."""
    W = random(200, 64)
    blind, alike = (rounded(W, GridSpec(2, 64, symmetric), **about) for about in ({}, {"importance": torch.ones(64)}))
    shrunk = [1 - float((W * V).sum() / W.square().sum()) for V in (blind, alike)]
    assert 0 <= shrunk[0] < 0.7 * shrunk[1]


def test_what_matters_more_is_nearer() -> None:
    W = random(30, 32)
    h = torch.ones(32)
    h[:4] = 1000
    weighted, plain = rounded(W, GridSpec(2, 32), importance=h), rounded(W, GridSpec(2, 32))
    assert (h * (W - weighted).square()).sum() < 0.6 * (h * (W - plain).square()).sum()


def test_what_was_pruned_takes_no_part() -> None:
    W = random(6, 32)
    keep = W.abs() < 1
    V = rounded(W, GridSpec(3, 32), keep=keep)
    assert torch.equal(V[keep], rounded(W * keep, GridSpec(3, 32), keep=keep)[keep])
    assert (W - V)[keep].square().sum() < (W - rounded(W, GridSpec(3, 32)))[keep].square().sum()


@pytest.mark.parametrize("group", [1, 7, 16, 40, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_every_width(group: int | None, symmetric: bool) -> None:
    W = random(3, 40)
    grid = fit_grid(W, GridSpec(4, group, symmetric))
    groups = 1 if group is None else -(-40 // group)
    assert grid.scale.shape == ((1, 1) if group is None else (3, groups))
    codes = quantize(W, grid)
    V = dequantize(codes, grid)
    assert (W - V).abs().max() < 0.5 * W.abs().max()
    some = torch.tensor([39, 0, 17])
    assert torch.equal(dequantize(codes[:, some], grid, some), V[:, some])
    if group == 1 and symmetric:
        assert torch.allclose(V, W, rtol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_specks_and_giants(symmetric: bool) -> None:
    W = torch.tensor([[0.0] * 8, [1e-12] * 8, [6e4] * 8, [1.0, -1, 0, 0, 0, 0, 0, 0]])
    V = rounded(W, GridSpec(4, 8, symmetric))
    assert torch.isfinite(V).all()
    assert not V[0].any()
    assert torch.allclose(V[2:], W[2:], rtol=1e-3, atol=0.08)


def test_scales_are_numbers_of_sixteen_bits() -> None:
    grid = fit_grid(random(9, 50), GridSpec(5, 13))
    assert isinstance(grid, Grid)
    assert torch.equal(grid.scale, grid.scale.half().float())
    assert ((grid.zero >= 0) & (grid.zero < 32) & (grid.zero == grid.zero.round())).all()


@pytest.mark.parametrize("largest", [1e-2, 4e-5, 4e-6, 4e-7])
def test_more_bits_are_no_worse_where_scales_are_hardly_numbers_of_sixteen_bits(largest: float) -> None:
    W = largest * random(20, 64) / random(20, 64).abs().max()
    errors = [float((rounded(W, GridSpec(bits, 64)) - W).norm() / W.norm()) for bits in (4, 6, 8)]
    assert errors[2] <= errors[1] * 1.01 <= errors[0] * 1.03
    assert errors[2] < 0.2 or largest < 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("known", [True, False])
def test_groups_leave_the_search_only_where_no_narrower_range_is_better(
    monkeypatch: pytest.MonkeyPatch, symmetric: bool, bits: int, known: bool
) -> None:
    W = torch.cat([random(200, 64), random(201, 64) ** 3, 1e-6 * random(30, 64)])
    spec, h = GridSpec(bits, 32, symmetric), random(64, 1).flatten().exp() if known else None
    grid = fit_grid(W, spec, h)
    monkeypatch.setattr(grid_search, "BOUNDED_FROM", 99)
    every = fit_grid(W, spec, h)
    assert torch.equal(grid.scale, every.scale)
    assert torch.equal(grid.zero, every.zero)
    monkeypatch.setattr(grid_search, "BOUNDED_FROM", 0)
    assert torch.equal(fit_grid(W, spec, h).scale, every.scale)
