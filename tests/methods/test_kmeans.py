"""k-means: the equation that it minimises, zeros, shared tables, few distinct weights."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from laconic.calibrate import Fisher, GradCovariance, InputCovariance, LayerStats
from laconic.errors import UserError
from laconic.formats import Codebook
from laconic.methods import KMeans, Rtn
from laconic.methods.quantize.base import QuantizationMethod
from laconic.methods.registry import parse_method
from laconic.numerics.moments import floored_diagonal, quadratic_loss
from tests.matrices import Case, case

MATRIX = case("values", (24, 40))
Group = int | Literal["channel", "tensor"]
GROUPS: tuple[Group, ...] = ("channel", "tensor", 16)


def weighted(matrix: Case, method: QuantizationMethod, weights: torch.Tensor) -> float:
    E = matrix.weight.double() - method.compress(matrix.weight, matrix.stats).dense().double()
    return (weights * E.square()).sum().item()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", GROUPS)
def test_it_is_no_worse_than_the_best_grid_of_the_same_weights(group: Group, bits: int) -> None:
    stats = MATRIX.stats
    fisher = KMeans(bits=bits, group_size=group, weights="fisher", refit=False)
    moments = KMeans(bits=bits, group_size=group, weights="moments", refit=False)
    F, C = (floored_diagonal(stats[kind].matrix) for kind in (GradCovariance, InputCovariance))
    for method, Phi in ((fisher, stats[Fisher].matrix), (moments, torch.outer(F, C))):
        assert weighted(MATRIX, method, Phi) < weighted(MATRIX, Rtn(bits=bits, group_size=group), Phi)


@pytest.mark.parametrize("group", GROUPS)
def test_zeros_that_were_chosen_stay_and_take_no_value(group: Group) -> None:
    mask = torch.rand(24, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    stats = MATRIX.stats | LayerStats(support=mask)
    layer = KMeans(bits=2, group_size=group).compress(MATRIX.weight * mask, stats)
    assert not layer.dense()[~mask].any()
    # With a row of as few weights as there are values, none of these is spent on the zeros.
    few = torch.zeros(24, 40, dtype=torch.bool)
    few[:, 3:7] = True
    exact = KMeans(bits=2).compress(MATRIX.weight * few, MATRIX.stats | LayerStats(support=few)).dense()
    torch.testing.assert_close(exact, MATRIX.weight * few, rtol=1e-3, atol=1e-6)


def test_a_row_of_few_distinct_weights_is_exact() -> None:
    weight = torch.tensor([-0.5, 0.25, 2.0])[torch.arange(24 * 40).view(24, 40) % 3]
    weight[5] = 0
    weight[6] = 0.75
    assert torch.equal(KMeans(bits=2).compress(weight, MATRIX.stats).dense(), weight)


def test_a_matrix_that_was_never_used_is_kept_by_its_weights_alone() -> None:
    nothing = [
        InputCovariance.from_total(torch.zeros(40, 40).double(), 1),
        GradCovariance.from_total(torch.zeros(24, 24).double(), 1),
        Fisher.from_total(torch.zeros(24, 40).double(), 1),
    ]
    idle = replace(MATRIX, stats=LayerStats(nothing))
    alike = torch.ones(24, 40).double()
    for method in (KMeans(weights="fisher"), KMeans(weights="moments"), KMeans(), KMeans(refit=False)):
        assert weighted(idle, method.with_bits(3), alike) < weighted(idle, Rtn(bits=3, group_size="channel"), alike)


def test_tables_take_the_bytes_that_were_said() -> None:
    for group, tables in zip(GROUPS, (24, 1, 24 * 3), strict=True):
        method = KMeans(bits=3, group_size=group)
        assert method.with_bits(3).nbytes_for((24, 40), torch.float32) == 24 * 40 * 3 // 8 + tables * 8 * 2
        layer = method.compress(MATRIX.weight, MATRIX.stats)
        assert isinstance(layer, Codebook)
        assert layer.nbytes() == method.with_bits(3).nbytes_for((24, 40), torch.float32)


def test_it_asks_for_what_its_weights_are_made_of() -> None:
    assert KMeans().required_statistics == {Fisher, InputCovariance, GradCovariance}
    assert KMeans(weights="moments").required_statistics == {InputCovariance, GradCovariance}
    assert KMeans(weights="fisher").required_statistics == {Fisher, InputCovariance, GradCovariance}
    assert KMeans(weights="fisher", refit=False).required_statistics == {Fisher}
    with pytest.raises(UserError, match=r"weights must be .*shrunk.*fisher.*moments.*got 'hessian'"):
        parse_method("kmeans:weights=hessian", "method")


@pytest.mark.parametrize("group", GROUPS)
def test_refitted_values_lose_less_at_the_outputs(group: Group) -> None:
    C = MATRIX.stats[InputCovariance].matrix
    losses = []
    for refit in (False, True):
        dense = KMeans(bits=2, group_size=group, refit=refit).compress(MATRIX.weight, MATRIX.stats).dense()
        losses.append(quadratic_loss(MATRIX.weight - dense, floored_diagonal(MATRIX.stats[GradCovariance].matrix), C))
    # Four values for the whole matrix leave little to fit.
    assert losses[1] < (1 if group == "tensor" else 0.95) * losses[0]
