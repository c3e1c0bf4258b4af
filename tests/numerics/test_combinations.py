"""Combinations as numbers."""

from itertools import combinations
from math import comb

import pytest
import torch

from laconic.numerics.combinations import (
    follows_pattern,
    index_bits,
    rank_combinations,
    unrank_combinations,
)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (3, 7), (8, 16)])
def test_combinations_are_numbered_without_gaps(pattern: tuple[int, int]) -> None:
    kept, of = pattern
    groups = torch.tensor([[place in chosen for place in range(of)] for chosen in combinations(range(of), kept)])
    numbers = rank_combinations(groups)
    assert sorted(numbers.tolist()) == list(range(comb(of, kept)))
    assert torch.equal(unrank_combinations(numbers, pattern), groups)
    assert 2 ** index_bits(pattern) >= comb(of, kept) > 2 ** (index_bits(pattern) - 1)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 2), (3, 7)])
def test_many_groups_have_the_numbers_of_few(pattern: tuple[int, int]) -> None:
    kept, of = pattern
    few = torch.tensor([[place in chosen for place in range(of)] for chosen in combinations(range(of), kept)])
    picks = torch.randint(len(few), (1000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rank_combinations(few[picks]), rank_combinations(few)[picks])
    assert torch.equal(unrank_combinations(rank_combinations(few)[picks], pattern), few[picks])


def test_combinations_by_hand() -> None:
    # Σ C(cᵢ, i): {0, 1} is 0, {0, 2} is C(0, 1) + C(2, 2) = 1, {2, 3} is C(2, 1) + C(3, 2) = 5.
    groups = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert rank_combinations(groups).tolist() == [0, 1, 5]
    assert index_bits((2, 4)) == 3


def test_the_widest_group_whose_number_fits() -> None:
    groups = torch.zeros(1, 64, dtype=torch.bool)
    groups[:, 32:] = True
    assert rank_combinations(groups).item() == comb(64, 32) - 1
    assert torch.equal(unrank_combinations(rank_combinations(groups), (32, 64)), groups)
    assert follows_pattern(groups, (32, 64))
    # C(66, 33) takes 63 bits, one more than can be packed.
    wide = torch.zeros(1, 66, dtype=torch.bool)
    wide[:, :33] = True
    assert not follows_pattern(wide, (33, 66))


@pytest.mark.parametrize("pattern", [(2, 128), (126, 128), (1, 1000), (4, 300)])
def test_few_of_a_wide_group_fit_though_half_of_it_would_not(pattern: tuple[int, int]) -> None:
    kept, of = pattern
    scores = torch.rand(5, of, generator=torch.Generator().manual_seed(0))
    groups = torch.zeros(7, of, dtype=torch.bool).scatter_(1, scores.topk(kept, dim=1).indices, True)
    groups[5, :kept] = groups[6, of - kept :] = True
    assert follows_pattern(groups, pattern)
    numbers = rank_combinations(groups)
    assert numbers[5:].tolist() == [0, comb(of, kept) - 1]
    assert torch.equal(unrank_combinations(numbers, pattern), groups)


def test_what_follows_a_pattern() -> None:
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    assert follows_pattern(mask, (2, 4))
    assert follows_pattern(mask, (1, 2))
    assert not follows_pattern(mask, (1, 4))
    assert not follows_pattern(mask, (2, 3))
    assert not follows_pattern(torch.ones_like(mask), (4, 4))
    mask[0, 0] = False
    assert not follows_pattern(mask, (2, 4))
