"""Scales of llama.cpp's blocks: values that the blocks can hold, and errors below those of gguf's own quantizer."""

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as read_by_gguf
from gguf.quants import quantize as quantize_by_gguf
from torch import Tensor

from laconic.numerics import ggml_uneven
from laconic.numerics.ggml_blocks import BLOCK_TYPES, BlockType, decode_blocks, pack_blocks
from laconic.numerics.ggml_fit import fit_blocks
from laconic.numerics.ggml_uneven import fit_uneven
from laconic.numerics.gptq import ColumnOrder, gptq
from laconic.numerics.grid import GridSpec, dequantize, fit_grid, quantize
from laconic.numerics.grid_search import CLIPS, Groups
from laconic.numerics.obs import damp
from laconic.numerics.quantizer import nearest
from laconic.numerics.rounding import UNEVEN_STEPS
from tests.numerics.test_obs import hessian

ROWS, COLUMNS = 12, 512
TYPES = [pytest.param(kind, id=name) for name, kind in BLOCK_TYPES.items()]
SUPER = [pytest.param(kind, id=name) for name, kind in BLOCK_TYPES.items() if kind.scale_bits is not None]
WRITTEN_BY_GGUF = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def matrix() -> Tensor:
    """A matrix whose groups of 32 columns have different ranges."""
    generator = torch.Generator().manual_seed(0)
    ranges = torch.exp(0.5 * torch.randn(ROWS, COLUMNS // 32, generator=generator)).repeat_interleave(32, 1)
    return 0.03 * ranges * torch.randn(ROWS, COLUMNS, generator=generator)


def importance() -> Tensor:
    return torch.exp(1.5 * torch.randn(COLUMNS, generator=torch.Generator().manual_seed(1)))


def through_bytes(W: Tensor, kind: BlockType, h: Tensor | None) -> Tensor:
    """The values that a file with the rounded matrix holds."""
    rounded = nearest(W, kind, h)
    assert rounded.blocks is not None
    return decode_blocks(pack_blocks(rounded.blocks.with_codes(rounded.codes), kind), kind)


def error(W: Tensor, values: Tensor, h: Tensor) -> float:
    return (h * (W - values).square()).sum().item()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_the_values_that_are_rounded_to_are_those_that_the_bytes_hold(kind: BlockType, known: bool) -> None:
    W, h = matrix(), importance() if known else None
    rounded = nearest(W, kind, h)
    torch.testing.assert_close(dequantize(rounded.codes, rounded.grid), through_bytes(W, kind, h), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WRITTEN_BY_GGUF)
def test_the_weighted_error_is_less_than_that_of_gguf(name: str) -> None:
    W, h, code = matrix(), importance(), GGMLQuantizationType[name.upper()]
    theirs = torch.tensor(read_by_gguf(quantize_by_gguf(W.numpy(), code), code))
    assert error(W, through_bytes(W, BLOCK_TYPES[name], h), h) < 0.75 * error(W, theirs, h)


@pytest.mark.parametrize("kind", SUPER)
def test_scales_of_few_bits_cost_little(kind: BlockType) -> None:
    """Beside scales of 16 bits for each group; minima between the steps then more than make up for them."""
    W, h = matrix(), importance()
    grid = fit_grid(W, GridSpec(kind.bits, kind.group, symmetric=not kind.has_minimum), h)
    free = error(W, dequantize(quantize(W, grid), grid), h)
    assert error(W, through_bytes(W, kind, h), h) < (0.9 if kind.has_minimum else 1.1) * free


@pytest.mark.parametrize("kind", SUPER)
def test_integers_near_the_found_ones_are_no_better(kind: BlockType) -> None:
    W, h = matrix()[:2, : kind.columns], importance()[: kind.columns]
    fitted = fit_blocks(W, kind, h)
    scales = fitted.scales
    assert scales.scales is not None
    least = error(W, through_bytes(W, kind, h), h)
    for column in range(0, kind.groups, 5):
        for step in (-1, 1):
            changed = scales.scales.clone()
            changed[:, column] += step
            if changed.min() < (0 if kind.has_minimum else -(2 ** (kind.scale_bits or 0) // 2)) or changed.max() > 63:
                continue
            other = fitted._replace(scales=scales._replace(scales=changed)).affine
            assert error(W, dequantize(quantize(W, other), other), h) > 0.999 * least


@pytest.mark.parametrize("kind", TYPES)
def test_zeros_and_tiny_weights_stay_what_they_are(kind: BlockType) -> None:
    W = torch.zeros(3, kind.columns)
    W[1] = matrix()[0, : kind.columns]
    W[1, : kind.group] = 0
    W[2] = 1e-7 * torch.sign(matrix()[1, : kind.columns])
    values = through_bytes(W, kind, None)
    assert not values[0].any() and not values[1, : kind.group].any()
    assert values.isfinite().all()
    assert values[2].abs().max() < 1e-6


@pytest.mark.parametrize("kind", TYPES)
def test_a_matrix_that_blocks_can_hold_is_found_again(kind: BlockType) -> None:
    """Nearly: the search ends where no integer near the present ones is better."""
    W, same = matrix(), torch.ones(COLUMNS)
    held = through_bytes(W, kind, same)
    assert error(held, through_bytes(held, kind, same), same) < 0.6 * error(W, held, same)


@pytest.mark.parametrize("by_activity", [True, False])
@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k", "q2_k", "iq4_nl"])
def test_compensation_rounds_to_the_values_of_blocks_and_lowers_the_loss(name: str, by_activity: bool) -> None:
    W, H, kind = matrix(), damp(hessian(COLUMNS, 900), 0.01), BLOCK_TYPES[name]
    order = ColumnOrder.from_hessian(H, by_activity)
    rounded = gptq(W, order, kind)
    assert rounded.blocks is not None
    held = decode_blocks(pack_blocks(rounded.blocks.with_codes(rounded.codes), kind), kind)
    torch.testing.assert_close(dequantize(rounded.codes, rounded.grid), held, rtol=0, atol=1e-6)
    direct = through_bytes(W, kind, order.importance)
    losses = [((E @ H) * E).sum() for E in (W.double() - values for values in (held, direct))]
    assert losses[0] < 0.9 * losses[1]


def test_uneven_steps_are_rounded_to_the_nearest_and_cost_less_than_even_ones() -> None:
    W, h = matrix(), importance()
    rounded = nearest(W, BLOCK_TYPES["iq4_nl"], h)
    values = rounded.grid.scale.repeat_interleave(32, 1)[..., None] * torch.tensor(UNEVEN_STEPS)
    assert torch.equal((W[..., None] - values).abs().amin(-1), (W - through_bytes(W, BLOCK_TYPES["iq4_nl"], h)).abs())
    assert error(W, through_bytes(W, BLOCK_TYPES["iq4_nl"], h), h) < 0.95 * error(
        W, through_bytes(W, BLOCK_TYPES["q4_0"], h), h
    )


@pytest.mark.parametrize("along", [1.0, 2.0])
def test_groups_that_leave_the_search_for_uneven_steps_have_their_best_scale(
    along: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    W = matrix().view(-1, 32)
    h = importance().view(-1, 32).repeat(ROWS, 1) if along == 1 else torch.ones_like(W)
    found = fit_uneven(Groups.of(W, h, along))
    monkeypatch.setattr(ggml_uneven, "BOUNDED_FROM", len(CLIPS))
    assert torch.equal(found, fit_uneven(Groups.of(W, h, along)))


def test_scales_of_uneven_steps_have_either_sign() -> None:
    steps = torch.tensor(UNEVEN_STEPS) / 64
    W = torch.stack([steps, -steps, 0 * steps])
    assert (64 * fit_uneven(Groups.of(W, torch.ones_like(W), along=1.0))).tolist() == [1, -1, 0]


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"q4_k needs rows of a multiple of 256 columns; got 288"):
        fit_blocks(matrix()[:, :288], BLOCK_TYPES["q4_k"])
    with pytest.raises(ValueError, match=r"blocks of q4_0 store every weight, so none can be pruned"):
        nearest(matrix(), BLOCK_TYPES["q4_0"], None, matrix() > 0)
