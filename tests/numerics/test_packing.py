"""Codes of a few bits without gaps between them, and combinations as numbers."""

from itertools import combinations
from math import ceil, comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.numerics.packing import (
    follows_pattern,
    index_bits,
    pack,
    pack_mask,
    packed_nbytes,
    rank_combinations,
    unpack,
    unpack_mask,
    unrank_combinations,
)


@given(st.integers(1, 62), st.integers(0, 70), st.integers(0, 2**31))
def test_codes_come_back(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed))
    stream = pack(codes, bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == packed_nbytes(count, bits) == ceil(count * bits / 8)
    assert torch.equal(unpack(stream, bits, count).long(), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_of_a_byte_or_less(bits: int) -> None:
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(3)
    assert torch.equal(unpack(pack(codes, bits), bits, len(codes)), codes)


@pytest.mark.parametrize("bits", [1, 3, 5, 8, 11, 30])
def test_the_stream_is_the_bits_of_the_codes_lowest_first(bits: int) -> None:
    codes = [(2**bits - 1) * 7 // (place + 8) for place in range(13)]
    whole = sum(code << place * bits for place, code in enumerate(codes))
    expected = whole.to_bytes(ceil(13 * bits / 8), "little")
    assert bytes(pack(torch.tensor(codes), bits).tolist()) == expected


@given(st.lists(st.integers(0, 9), min_size=0, max_size=3), st.integers(0, 2**31))
def test_masks_of_any_shape_come_back(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    stream = pack_mask(mask)
    assert len(stream) == ceil(mask.numel() / 8)
    assert torch.equal(unpack_mask(stream, tuple(shape)), mask)


def test_a_mask_need_not_be_contiguous() -> None:
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(unpack_mask(pack_mask(mask.T), (7, 5)), mask.T)


@pytest.mark.parametrize("bits", [0, 63])
def test_codes_of_too_few_or_many_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 62 bits"):
        pack(torch.zeros(3, dtype=torch.int64), bits)
    with pytest.raises(ValueError, match="1 to 62 bits"):
        unpack(torch.zeros(3, dtype=torch.uint8), bits, 3)


def test_a_stream_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="9 codes of 3 bits are 4 bytes; got 3"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 9)


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
