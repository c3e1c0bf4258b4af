"""Scaled and shifted rows are exact, by every way to compute them."""

import pytest
import torch

from laconic.numerics.grid import Grid, dequantize
from laconic.numerics.scaled_rows import scale_rows


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
