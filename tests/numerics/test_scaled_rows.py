"""Scaled and shifted rows are exact, by every way to compute them."""

import pytest
import torch

from laconic.formats.code_matrix import CodeMatrix
from laconic.numerics.grid import Grid, dequantize
from laconic.numerics.packing import pack
from laconic.numerics.scaled_rows import PackedRows, can_scale_packed, scale_rows


@pytest.mark.parametrize("columns", [1, 7, 64, 100])
def test_the_function_of_torch_and_plain_arithmetic_agree_bit_for_bit(columns: int):
    generator = torch.Generator().manual_seed(columns)
    codes = torch.randint(0, 256, (33, columns), dtype=torch.uint8, generator=generator)
    scale = torch.randn(33, generator=generator).half().float()
    # The smallest and the largest scale that can be stored.
    scale[0], scale[1] = 2.0**-24, 65504
    shift = -scale * torch.randint(0, 256, (33,), generator=generator)
    fast = scale_rows(codes, scale, shift)
    assert torch.equal(fast, scale_rows(codes.long(), scale, shift))
    assert torch.equal(fast.double(), codes * scale[:, None].double() + shift[:, None].double())


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("columns", [16, 32, 48, 1024])
def test_packed_rows_are_scaled_exactly(bits: int, columns: int):
    generator = torch.Generator().manual_seed(columns)
    codes = torch.randint(0, 2**bits, (33, columns), dtype=torch.uint8, generator=generator)
    scale = torch.randn(33, generator=generator).half().float()
    scale[0], scale[1] = 2.0**-24, -65504
    zero = torch.randint(0, 2**bits, (33,), generator=generator).float()
    stream = pack(codes.view(-1), bits)
    assert can_scale_packed(stream, bits, columns)
    expected = (codes - zero[:, None].double()) * scale[:, None].double()
    rows = PackedRows.of(stream, bits, scale, zero)
    assert torch.equal(rows.scaled(0, 33).double(), expected)
    assert torch.equal(rows.scaled(8, 20).double(), expected[8:20])


def test_rows_that_are_no_whole_words_are_not_scaled_while_packed():
    stream = torch.zeros(64, dtype=torch.uint8)
    assert not can_scale_packed(stream, 4, columns=20)
    assert not can_scale_packed(stream[1:], 4, columns=16)
    assert not can_scale_packed(stream[:0], 4, columns=16)
    assert not can_scale_packed(stream, 8, columns=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [8, 64, 128, None])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_matrix_of_packed_codes_is_decoded_exactly(
    bits: int, group: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """In several tiles, of which the last one is smaller; groups of 8 may be no whole words."""
    monkeypatch.setattr("laconic.formats.code_matrix.TILE", 128 * 16)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (36, 128), dtype=torch.uint8, generator=generator)
    shape = (1, 1) if group is None else (36, 128 // group)
    scale = torch.randn(shape, generator=generator).half().float()
    zero = torch.randint(0, 2**bits, shape, generator=generator).float()
    columns = torch.rand(128, generator=generator)
    matrix = CodeMatrix(pack(codes.view(-1), bits), Grid(scale, zero, bits, group), (36, 128), columns)
    groups = torch.zeros(128, dtype=torch.long) if group is None else torch.arange(128) // group
    expected = scale[:, groups] * (codes - zero[:, groups]) * columns
    assert torch.equal(matrix.dense(dtype), expected.to(dtype))


def test_there_may_be_no_rows():
    assert scale_rows(torch.zeros(0, 4, dtype=torch.uint8), torch.zeros(0), torch.zeros(0)).shape == (0, 4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 80, None])
def test_a_grid_is_decoded_exactly(bits: int, group: int | None):
    """In groups of 32 the last one is shorter."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (6, 80), dtype=torch.uint8, generator=generator)
    shape = (1, 1) if group is None else (6, -(-80 // group))
    scale = torch.randn(shape, generator=generator).half().float()
    zero = torch.randint(0, 2**bits, shape, generator=generator).float()
    columns = torch.zeros(80, dtype=torch.long) if group is None else torch.arange(80) // group
    expected = scale.double()[:, columns] * (codes - zero.double()[:, columns])
    assert torch.equal(dequantize(codes, Grid(scale, zero, bits, group)).double(), expected)
