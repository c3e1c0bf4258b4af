"""Two-sided rounding against its equation, entry by entry, and against what it must be where one side is missing."""

import itertools

import pytest
import torch

from laconic.numerics.column_sweep import WeightGrids
from laconic.numerics.factors import UnitFactor
from laconic.numerics.gptq import ColumnOrder, gptq
from laconic.numerics.grid import GridSpec, dequantize, fit_grid, quantize
from laconic.numerics.ldlq import TILE, TwoSidedRounding, ldlq
from laconic.numerics.moments import quadratic_loss, shrink
from laconic.numerics.obs import damp
from tests.numerics.test_gptq import matrix
from tests.numerics.test_obs import hessian

SHAPES = [(5, 7), (TILE, TILE), (2 * TILE + 3, TILE - 1), (TILE + 5, 3 * TILE + 2)]


def entry_by_entry(
    W: torch.Tensor, allowed: WeightGrids, R_O: torch.Tensor, R_I: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and Z = R_O^T E R_I, each weight rounded to the value nearest to it and the terms of E before it."""
    E, codes = torch.zeros_like(W), torch.zeros_like(W)
    for i, j in itertools.product(range(W.shape[0]), range(W.shape[1])):
        # E is zero from here on: the entry of Z is what others have left for this one.
        w = W[i, j] + R_O[:, i] @ E @ R_I[:, j]
        codes[i, j] = (w * allowed.inverse[i, j] + allowed.zero[i, j]).round().clamp(0, 2**allowed.bits - 1)
        E[i, j] = W[i, j] - allowed.scale[i, j] * (codes[i, j] - allowed.zero[i, j])
    return codes.to(torch.uint8), R_O.T @ E @ R_I


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_tiles_change_nothing_of_the_equation(shape: tuple[int, int], kept: float) -> None:
    m, n = shape
    W, F, H = matrix(m, n).double(), damp(hessian(m, 3 * m), 0.1), damp(hessian(n, 3 * n), 0.01)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < kept
    W = W * mask
    allowed = WeightGrids.from_grid(fit_grid(W, GridSpec(2, 4), keep=mask), torch.arange(n), mask)
    (T_O, D_O), (T_I, D_I) = UnitFactor.from_moment(F), UnitFactor.from_moment(H)
    R_O, R_I = T_O.dense(), T_I.dense()
    expected, Z = entry_by_entry(W, allowed, R_O, R_I)
    codes = ldlq(W, allowed, R_O, R_I)
    assert torch.equal(codes, expected)
    E = W - allowed.scale * (codes - allowed.zero)
    loss = 0.5 * (torch.outer(D_O, D_I) * Z.square()).sum().item()
    assert quadratic_loss(E, F, H) == pytest.approx(loss)
    assert not (W - E)[~mask].any()


def test_without_correlations_between_outputs_it_is_gptq() -> None:
    W, H = matrix(40, 70), damp(hessian(70, 200), 0.01)
    # A full F goes its own way to the ranges, a diagonal one does not.
    for F, clip in ((torch.eye(40).double(), False), (torch.ones(40).double(), False), (torch.ones(40).double(), True)):
        spacing = GridSpec(3, 32, clip=clip)
        expected = gptq(W, ColumnOrder.from_hessian(H), spacing)
        rounded = TwoSidedRounding.from_moments(F, H).round(W, spacing)
        assert torch.equal(rounded.grid.scale, expected.grid.scale)
        assert torch.equal(rounded.codes, expected.codes)


def test_of_one_hot_inputs_only_outputs_make_up_for_each_other() -> None:
    W, F, spacing = matrix(30, 50), damp(hessian(30, 90), 0.1), GridSpec(3, 10)
    counts = torch.linspace(1, 3, 50).double()
    thin = TwoSidedRounding.from_moments(F, counts).round(W, spacing)
    full = TwoSidedRounding.from_moments(F, torch.diag(counts)).round(W, spacing._replace(clip=False))
    same = TwoSidedRounding.from_moments(F, counts).round(W, spacing._replace(clip=False))
    assert torch.equal(same.codes, full.codes)
    nearest = dequantize(quantize(W, thin.grid), thin.grid)
    found = quadratic_loss(W - dequantize(thin.codes, thin.grid), F, counts)
    assert found < 0.9 * quadratic_loss(W - nearest, F, counts)
    alone = TwoSidedRounding.from_moments(F, counts).round(W, spacing._replace(group=None))
    nearest = dequantize(quantize(W, alone.grid), alone.grid)
    found = quadratic_loss(W - dequantize(alone.codes, alone.grid), F, counts)
    assert found < quadratic_loss(W - nearest, F, counts)
    both = TwoSidedRounding.from_moments(torch.ones(30), counts).round(W, spacing)
    assert torch.equal(both.codes, quantize(W, fit_grid(W, spacing)))


@pytest.mark.parametrize("bits", [2, 4])
def test_it_beats_feedback_along_the_rows_alone(bits: int) -> None:
    ratios = []
    for seed in range(8):
        W, H = matrix(48, 64, seed), damp(hessian(64, 200), 0.01)
        F, spacing = shrink(hessian(48 + seed, 200)[:48, :48], 0.1), GridSpec(bits, 32)
        losses = [
            quadratic_loss(W - dequantize(rounded.codes, rounded.grid), F, H)
            for rounded in (
                TwoSidedRounding.from_moments(F, H).round(W, spacing),
                gptq(W, ColumnOrder.from_hessian(H), spacing),
            )
        ]
        ratios.append(losses[0] / losses[1])
    assert max(ratios) < 1
    assert sum(ratios) / len(ratios) < 0.85


def test_of_every_choice_of_codes_it_is_near_the_best() -> None:
    """Two rows of two weights in two bits: 256 choices."""
    choices = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.uint8).view(-1, 2, 2)
    found = best = naive = 0.0
    for seed in range(40):
        W = matrix(2, 2, seed)
        F, H = (damp(hessian(3)[k : k + 2, k : k + 2], 0.01) for k in (0, 1))
        rounded = TwoSidedRounding.from_moments(F, H).round(W, GridSpec(2, 2))
        tried = torch.cat([rounded.codes[None], quantize(W, rounded.grid)[None], choices])
        E = (W - rounded.grid.scale * (tried - rounded.grid.zero)).double()
        every = 0.5 * (F @ E @ H * E).sum((1, 2))
        assert every[0] >= every[2:].min() - 1e-12
        found, naive, best = found + every[0].item(), naive + every[1].item(), best + every[2:].min().item()
    assert best <= found < 0.9 * naive
