"""Blocks of llama.cpp, bit for bit as the package `gguf` reads them."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from laconic.numerics.ggml_blocks import BLOCK_TYPES, BlockType, decode_blocks, pack_blocks, unpack_blocks

TYPES = [pytest.param(kind, id=name) for name, kind in BLOCK_TYPES.items()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_blocks(kind: BlockType, rows: int = 3, blocks: int = 2) -> Tensor:
    """Random bytes; d and m, whose random bytes could be NaN, are drawn as numbers."""
    generator = seeded()
    data = torch.randint(0, 256, (rows, blocks * kind.nbytes), generator=generator, dtype=torch.uint8)
    numbers = unpack_blocks(data, kind)
    d = torch.randn(rows, blocks, generator=generator).half()
    m = None if numbers.m is None else torch.randn(rows, blocks, generator=generator).half()
    return pack_blocks(numbers._replace(d=d, m=m), kind)


@pytest.mark.parametrize("kind", TYPES)
def test_sizes_are_those_of_gguf(kind: BlockType) -> None:
    columns, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind.name.upper()]]
    assert (kind.columns, kind.nbytes, kind.row_nbytes(3 * columns)) == (columns, nbytes, 3 * nbytes)


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_those_of_gguf_bit_for_bit(kind: BlockType) -> None:
    data = random_blocks(kind)
    theirs = dequantize(data.numpy(), GGMLQuantizationType[kind.name.upper()])
    ours = decode_blocks(data, kind).numpy()
    assert ours.shape == (3, 2 * kind.columns)
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize("kind", TYPES)
def test_unpacked_numbers_pack_to_the_same_bytes(kind: BlockType) -> None:
    data = random_blocks(kind)
    assert pack_blocks(unpack_blocks(data, kind), kind).equal(data)


@pytest.mark.parametrize("kind", TYPES)
def test_every_code_is_kept(kind: BlockType) -> None:
    numbers = unpack_blocks(random_blocks(kind), kind)
    codes = torch.randint(0, 2**kind.bits, numbers.codes.shape, generator=seeded(1), dtype=torch.uint8)
    assert unpack_blocks(pack_blocks(numbers._replace(codes=codes), kind), kind).codes.equal(codes)


def test_every_scale_and_minimum_is_kept() -> None:
    ranges = {"q2_k": (0, 16), "q3_k": (-32, 32), "q4_k": (0, 64), "q5_k": (0, 64), "q6_k": (-128, 128)}
    assert set(ranges) == {name for name, kind in BLOCK_TYPES.items() if kind.scale_bits is not None}
    for name, (low, high) in ranges.items():
        kind = BLOCK_TYPES[name]
        numbers = unpack_blocks(random_blocks(kind, rows=40), kind)
        assert numbers.scales is not None
        drawn = [torch.randint(low, high, numbers.scales.shape, generator=seeded(seed)) for seed in (1, 2)]
        numbers = numbers._replace(scales=drawn[0], minima=drawn[1] if kind.has_minimum else None)
        read = unpack_blocks(pack_blocks(numbers, kind), kind)
        assert read.scales is not None
        assert drawn[0].equal(read.scales.long())
        assert drawn[0].aminmax() == (low, high - 1)
        assert (read.minima is not None) == kind.has_minimum
        assert read.minima is None or drawn[1].equal(read.minima.long())


def test_incomplete_blocks_are_refused() -> None:
    kind = BLOCK_TYPES["q4_k"]
    with pytest.raises(ValueError, match=r"q4_k needs rows of a multiple of 256 columns; got 300"):
        kind.row_nbytes(300)
    with pytest.raises(ValueError, match=r"rows of q4_k have a multiple of 144 bytes; got 143"):
        unpack_blocks(torch.zeros(1, 143, dtype=torch.uint8), kind)
