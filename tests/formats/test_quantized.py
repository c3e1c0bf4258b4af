"""Codes as a layer: what it decodes to, as a linear and as a word embedding, with zeros and without."""

import pytest
import torch

from laconic.formats import LowRank, PackedEmbedding, Quantized, Sum
from laconic.numerics.grid import GridSpec, dequantize, fit_grid, quantize

EIGHTS = GridSpec(3, 8)


def quantized(
    shape: tuple[int, int] = (12, 20), spacing: GridSpec = EIGHTS, mask: torch.Tensor | None = None
) -> Quantized:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = fit_grid(W, spacing, keep=mask)
    return Quantized.from_codes(quantize(W, grid), grid, spacing.symmetric, mask=mask)


def half_of(shape: tuple[int, int] = (12, 20)) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [1, 8, 20, None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(12, 20), (1, 20), (7, 20)])
def test_it_is_exactly_what_its_codes_stand_for(bits: int, group: int | None, symmetric: bool, shape) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = fit_grid(W, GridSpec(bits, group, symmetric))
    layer = Quantized.from_codes(quantize(W, grid), grid, symmetric)
    assert torch.equal(layer.dense(), dequantize(quantize(W, grid), grid))
    grids = 1 if group is None else shape[0] * -(-20 // group)
    zeros = 0 if symmetric else -(-grids * bits // 8)
    assert layer.nbytes() == -(-W.numel() * bits // 8) + 2 * grids + zeros
    assert layer.support is None


def test_with_a_mask_the_others_are_zero_and_have_no_codes() -> None:
    mask = half_of()
    layer = quantized(mask=mask)
    assert torch.equal(layer.support, mask)
    assert not layer.dense()[~mask].any()
    assert layer.count == int(mask.sum())
    # 36 scales and their zero points, a bit for each weight, three bits for each that is kept.
    assert layer.nbytes() == 2 * 36 + -(-36 * 3 // 8) + 240 // 8 + -(-layer.count * 3 // 8)


def test_no_bit_of_it_is_lost_in_a_state_dict() -> None:
    layer = quantized(mask=half_of())
    layer.set_bias(torch.arange(12.0))
    again = Quantized.empty(**layer.spec())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.dense(), layer.dense())
    assert again.bias is not None
    assert torch.equal(again.bias, torch.arange(12.0))


def test_a_gradient_passes_through_it_and_reaches_the_bias_alone() -> None:
    layer = quantized()
    layer.set_bias(torch.zeros(12))
    layer.requires_grad_(True)
    x = torch.randn(3, 20, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.dense().sum(0).expand(3, 20), atol=1e-5)
    assert [name for name, parameter in layer.named_parameters() if parameter.grad is not None] == ["shift"]


@pytest.mark.parametrize("masked", [True, False])
def test_looked_up_it_is_the_columns(masked: bool) -> None:
    matrix = quantized(mask=half_of() if masked else None)
    embedding = matrix.to_embedding(padding_idx=0)
    assert isinstance(embedding, PackedEmbedding)
    tokens = torch.tensor([[0, 19, 3], [3, 3, 7]])
    assert torch.equal(embedding(tokens), matrix.dense().T[tokens])
    assert embedding.nbytes() == matrix.nbytes()


def test_it_computes_in_half_precision_and_decodes_as_before() -> None:
    layer = quantized()
    exact = layer.dense()
    assert torch.equal(layer.half().dense(), exact.half())
    assert torch.equal(layer.float().dense(), exact)
    assert layer.half()(torch.randn(2, 20).half()).dtype == torch.float16


def test_a_sum_adds() -> None:
    generator = torch.Generator().manual_seed(2)
    low = LowRank.from_factors(torch.randn(12, 3, generator=generator), torch.randn(3, 20, generator=generator))
    layer = Sum.from_parts(quantized(), low)
    layer.set_bias(torch.ones(12))
    x = torch.randn(4, 20, generator=generator)
    assert torch.allclose(layer(x), x @ (quantized().dense() + low.dense()).T + 1, atol=1e-5)
    assert layer.nbytes() == quantized().nbytes() + low.nbytes()
    assert layer.macs() == 12 * 20 + 3 * 32
    tokens = torch.tensor([0, 5, 19])
    assert torch.allclose(
        Sum.from_parts(quantized(), low).to_embedding(None)(tokens), layer.dense().T[tokens], atol=1e-5
    )
    with pytest.raises(ValueError, match="cannot be added"):
        Sum.from_parts(quantized((12, 24)), low)


def test_held_it_computes_the_same_and_keeps_nothing_afterwards() -> None:
    layer, x = quantized(), torch.randn(5, 20)
    before, fresh = layer(x), set(layer.state_dict())
    with layer.keep_decoded():
        assert torch.equal(layer(x), before)
        assert set(layer.state_dict()) == fresh
    with torch.no_grad():
        layer.requantize(torch.zeros(layer.shape))
    assert not torch.equal(layer(x), before)
