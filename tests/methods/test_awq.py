"""AWQ: which scales it takes, what it stores of them, and which zeros stay."""

import pytest
import torch

from laconic.calibrate import AbsMean, GradCovariance, InputCovariance, LayerStats
from laconic.formats import Quantized
from laconic.methods import Awq, Rtn
from laconic.numerics.grid import GridSpec, dequantize, fit_grid, quantize
from laconic.numerics.moments import quadratic_loss
from laconic.numerics.scaling import POWERS, ScaledMatrix, activation_powers, search_scales
from tests.matrices import Case, case

MATRIX = case("scaled", (24, 40))


def loss(matrix: Case, dense: torch.Tensor) -> float:
    return quadratic_loss(
        matrix.weight - dense, matrix.stats[GradCovariance].matrix, matrix.stats[InputCovariance].matrix
    )


def scales(x: torch.Tensor, power: float) -> torch.Tensor:
    """s_j = x_j^a / √(max x^a · min x^a), as the paper's code has it."""
    x = x.double()
    return (x**power / (x.max() * x.min()) ** (power / 2)).float()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_loses_less_than_rounding_the_columns_as_they_are(bits: int) -> None:
    for clip in (False, True):
        awq = Awq(bits=bits, clip=clip, group_size=16).compress(MATRIX.weight, MATRIX.stats).dense()
        rtn = Rtn(bits=bits, clip=clip, group_size=16).compress(MATRIX.weight, MATRIX.stats).dense()
        assert loss(MATRIX, awq) < loss(MATRIX, rtn)


def test_of_several_readers_it_is_the_sum_that_counts() -> None:
    stats, spacing = MATRIX.stats, GridSpec(3, 16, clip=False)
    first = ScaledMatrix(MATRIX.weight, stats[GradCovariance].matrix, stats[InputCovariance].matrix)
    second = first._replace(W=MATRIX.weight.flip(0) * torch.linspace(0.1, 4, 40))
    losses = []
    for power in POWERS:
        s = scales(stats[AbsMean].vector, power)
        total = 0.0
        for reader in (first, second):
            grid = fit_grid(reader.W * s, spacing)
            values = dequantize(quantize(reader.W * s, grid), grid)
            total += quadratic_loss(reader.W - values / s, reader.F, reader.C)
        losses.append(total)
    expected = scales(stats[AbsMean].vector, POWERS[losses.index(min(losses))])
    found = search_scales([first, second], stats[AbsMean].vector, spacing, weighted=False)
    # They are rounded to 16 bits.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_it_stores_one_number_of_16_bits_for_each_column() -> None:
    layer = Awq(bits=4, group_size=8).compress(MATRIX.weight, MATRIX.stats)
    plain = Rtn(bits=4, group_size=8).compress(MATRIX.weight, MATRIX.stats)
    assert isinstance(layer, Quantized)
    assert (
        layer.nbytes() == plain.nbytes() + 2 * 40 == Awq(group_size=8).with_bits(4).nbytes_for((24, 40), torch.float32)
    )
    shell = Quantized.empty(**layer.spec())
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell.dense(), layer.dense())
    which = torch.tensor([39, 0, 7])
    assert torch.equal(shell.decode_columns(which), layer.dense()[:, which])
    assert "scaled" not in plain.spec()


def test_zeros_that_were_chosen_stay() -> None:
    mask = torch.rand(24, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    layer = Awq(bits=3).compress(MATRIX.weight * mask, MATRIX.stats | LayerStats(support=mask))
    assert not layer.dense()[~mask].any()
    assert layer.support is not None and torch.equal(layer.support, mask)


def test_without_gradients_it_asks_for_none() -> None:
    assert Awq(gradients=False).required_statistics == {AbsMean, InputCovariance}
    only = LayerStats([MATRIX.stats[AbsMean], MATRIX.stats[InputCovariance]])
    assert torch.isfinite(Awq(bits=3, gradients=False).compress(MATRIX.weight, only).dense()).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 0.95])
def test_inputs_that_were_never_active_get_a_scale_that_can_be_stored(power: float) -> None:
    activity = torch.linspace(0, 1e4, 40).double()
    s = activation_powers(activity, power)
    inverse = (1 / s).half().float()
    assert torch.equal(1 / inverse, s)
    assert (inverse > torch.finfo(torch.float16).tiny).all() and torch.isfinite(s).all()
    assert torch.equal(activation_powers(torch.zeros(5), power), torch.ones(5))
