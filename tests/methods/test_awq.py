"""AWQ: which scales it takes, what it stores of them, and which zeros stay."""

import pytest
import torch

from laconic.calibrate import AbsMean, GradCovariance, InputCovariance, LayerStats
from laconic.formats import Quantized
from laconic.methods import Awq, Rtn
from laconic.numerics.grid import Spacing, codes_of, fit_grid, values_of
from laconic.numerics.loss import quadratic_loss
from laconic.numerics.scaling import POWERS, Scaled, best_scales, powers_of
from tests.matrices import Case, case

MATRIX = case("scaled", (24, 40))


def loss(matrix: Case, dense: torch.Tensor) -> float:
    return quadratic_loss(
        matrix.weight - dense, matrix.known[GradCovariance].matrix, matrix.known[InputCovariance].matrix
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_loses_less_than_rounding_the_columns_as_they_are(bits: int) -> None:
    for clip in (False, True):
        awq = Awq(bits=bits, clip=clip, group_size=16).compress(MATRIX.weight, MATRIX.known).dense()
        rtn = Rtn(bits=bits, clip=clip, group_size=16).compress(MATRIX.weight, MATRIX.known).dense()
        assert loss(MATRIX, awq) < loss(MATRIX, rtn)


def test_of_several_readers_it_is_the_sum_that_counts() -> None:
    known, spacing = MATRIX.known, Spacing(3, 16, clip=False)
    first = Scaled(MATRIX.weight, known[GradCovariance].matrix, known[InputCovariance].matrix)
    second = first._replace(W=MATRIX.weight.flip(0) * torch.linspace(0.1, 4, 40))
    losses = []
    for power in POWERS:
        s = powers_of(known[AbsMean].vector, power)
        total = 0.0
        for reader in (first, second):
            grid = fit_grid(reader.W * s, spacing)
            values = values_of(codes_of(reader.W * s, grid), grid)
            total += quadratic_loss(reader.W - values / s, reader.F, reader.C)
        losses.append(total)
    expected = powers_of(known[AbsMean].vector, POWERS[losses.index(min(losses))])
    assert torch.equal(best_scales([first, second], known[AbsMean].vector, spacing, weighted=False), expected)


def test_it_stores_one_number_of_16_bits_for_each_column() -> None:
    layer = Awq(bits=4, group_size=8).compress(MATRIX.weight, MATRIX.known)
    plain = Rtn(bits=4, group_size=8).compress(MATRIX.weight, MATRIX.known)
    assert isinstance(layer, Quantized)
    assert layer.nbytes() == plain.nbytes() + 2 * 40 == Awq(group_size=8).nbytes_at(4, (24, 40))
    shell = Quantized.shell(**layer.spec())
    shell.load_state_dict(layer.state_dict())
    assert torch.equal(shell.dense(), layer.dense())
    which = torch.tensor([39, 0, 7])
    assert torch.equal(shell.columns(which), layer.dense()[:, which])
    assert "scaled" not in plain.spec()


def test_zeros_that_were_chosen_stay() -> None:
    mask = torch.rand(24, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    layer = Awq(bits=3).compress(MATRIX.weight * mask, MATRIX.known | LayerStats(support=mask))
    assert not layer.dense()[~mask].any()
    assert layer.support is not None and torch.equal(layer.support, mask)


def test_without_gradients_it_asks_for_none() -> None:
    assert Awq(gradients=False).asks == {AbsMean, InputCovariance}
    only = LayerStats([MATRIX.known[AbsMean], MATRIX.known[InputCovariance]])
    assert torch.isfinite(Awq(bits=3, gradients=False).compress(MATRIX.weight, only).dense()).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 0.95])
def test_inputs_that_were_never_active_get_a_scale_that_can_be_stored(power: float) -> None:
    activity = torch.linspace(0, 1e4, 40).double()
    s = powers_of(activity, power)
    inverse = (1 / s).half().float()
    assert torch.equal(1 / inverse, s)
    assert (inverse > torch.finfo(torch.float16).tiny).all() and torch.isfinite(s).all()
    assert torch.equal(powers_of(torch.zeros(5), power), torch.ones(5))
