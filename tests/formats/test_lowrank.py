"""Two thin linears in place of one, and a thin table in place of a wide one."""

import pytest
import torch
from torch import Tensor, nn

from laconic.calibrate import LayerStats
from laconic.formats import (
    FORMATS,
    Codebook,
    Constant,
    Dense,
    Format,
    LowRank,
    Sparse,
    Sum,
    dense_weight,
    split_rows,
    weight_macs,
    weight_nbytes,
)
from laconic.methods import Int8, Rtn

OUT, IN, RANK = 6, 9, 4


def factors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(OUT, RANK, generator=generator, dtype=dtype)
    return A, torch.randn(RANK, IN, generator=generator, dtype=dtype)


def test_forward_is_the_product_of_the_factors_with_the_bias() -> None:
    A, B = factors()
    bias, x = torch.arange(OUT, dtype=torch.float64), torch.randn(2, 3, IN, dtype=torch.float64)
    layer = LowRank.from_factors(A, B)
    torch.testing.assert_close(layer(x), x @ (A @ B).T)
    layer.set_bias(bias)
    torch.testing.assert_close(layer(x), x @ (A @ B).T + bias)
    torch.testing.assert_close(layer.dense(), A @ B)
    assert layer.shape == (OUT, IN)


def test_bias_is_a_copy() -> None:
    bias = torch.zeros(OUT, dtype=torch.float64)
    layer = LowRank.from_factors(*factors())
    assert layer.bias is None
    layer.set_bias(bias)
    bias += 1
    assert layer.bias is not None
    assert not layer.bias.any()
    layer.set_bias(None)
    assert layer.bias is None


def test_lookup_is_the_transposed_matrix_row_by_row() -> None:
    A, B = factors()
    table = LowRank.from_factors(A, B).to_embedding(padding_idx=2)
    tokens = torch.tensor([[0, 8], [3, 3]])
    torch.testing.assert_close(table(tokens), (A @ B).T[tokens])
    torch.testing.assert_close(table.dense(), A @ B)
    assert table.shape == (OUT, IN)
    assert table.to_embedding(None) is table
    with pytest.raises(ValueError, match="no bias"):
        table.set_bias(torch.zeros(OUT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nbytes_is_what_is_stored(dtype: torch.dtype) -> None:
    linear = LowRank.from_factors(*factors(dtype))
    for format in (linear, linear.to_embedding(None)):
        stored = sum(tensor.nbytes for tensor in format.state_dict().values())
        assert format.nbytes() == stored == (OUT + IN) * RANK * dtype.itemsize


def test_macs() -> None:
    linear = LowRank.from_factors(*factors())
    assert linear.macs() == (OUT + IN) * RANK
    # Looking a row up multiplies nothing.
    assert linear.to_embedding(None).macs() == OUT * RANK
    assert weight_macs(nn.Linear(IN, OUT)) == weight_nbytes(nn.Linear(IN, OUT)) / 4 == OUT * IN


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_shell_of_its_spec_receives_the_tensors(lookup: bool, bias: bool) -> None:
    linear = LowRank.from_factors(*factors())
    linear.set_bias(torch.ones(OUT, dtype=torch.float64) if bias and not lookup else None)
    format: Format = linear.to_embedding(1) if lookup else linear
    shell = type(format).empty(**format.spec()).double()
    shell.load_state_dict(format.state_dict())
    assert shell.spec() == format.spec()
    torch.testing.assert_close(shell.dense(), format.dense(), rtol=0, atol=0)


def test_a_factor_may_be_a_format() -> None:
    A, B = factors()
    outer, x = LowRank.from_factors(A, B), torch.randn(3, IN, dtype=torch.float64)
    outer.set_bias(torch.ones(OUT, dtype=torch.float64))
    before, spec = outer(x), outer.spec()
    inner = LowRank.from_factors(A, torch.eye(RANK, dtype=torch.float64))
    inner.set_bias(outer.bias)
    outer.left = inner  # type: ignore[assignment]
    torch.testing.assert_close(outer(x), before)
    torch.testing.assert_close(outer.dense(), A @ B)
    assert outer.spec() == spec
    assert outer.nbytes() == inner.nbytes() + B.nbytes
    assert outer.macs() == inner.macs() + B.numel()
    assert dense_weight(outer) is not None


def examples() -> dict[type[Format], Format]:
    linear, weight = LowRank.from_factors(*factors(torch.float16)), torch.ones(OUT, IN, dtype=torch.float16)
    sparse, (_, reader) = Sparse.from_dense(weight, weight > 0), split_rows(linear, (2, OUT - 2))
    constant = Constant(OUT, IN, bias=False).half()
    coded = Rtn(bits=4).compress(weight, LayerStats())
    tables = Codebook.from_codes(weight.to(torch.uint8), torch.ones(OUT, 1, 4), IN, torch.float16)
    eights = Int8().compress(weight, LayerStats())
    blocks = Rtn(grid="q4_0").compress(torch.ones(OUT, 32).half(), LayerStats())
    single = (linear, reader, sparse, Dense.from_weight(weight), constant, coded, tables, eights, blocks)
    some: tuple[Format, ...] = (*single, Sum.from_parts(sparse, linear))
    looked_up = [format.to_embedding(None) for format in (linear, sparse, coded)]
    return {type(format): format for format in (*some, *looked_up)}


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.kind)
def test_every_format_leaves_a_tombstone(kind: type[Format]) -> None:
    format = examples()[kind]
    assert format.state_dict()["weight"].shape == (0,)
    assert format.weight.dtype == torch.float16
    assert all(reader in dict(format.named_children()) for reader in kind.input_modules)


def test_kinds_are_distinct() -> None:
    assert len({kind.kind for kind in FORMATS}) == len(FORMATS)
