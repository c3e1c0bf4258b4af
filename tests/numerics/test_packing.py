"""Codes of a few bits without gaps between them."""

from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.numerics.packing import pack, pack_mask, packed_nbytes, unpack, unpack_mask


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
