"""The rounding sweep against the surgeon's formula with explicit inverses, and against every choice of codes."""

import itertools

import pytest
import torch

from laconic.numerics.column_sweep import ColumnSweep, WeightGrids
from laconic.numerics.gptq import ColumnOrder, gptq
from laconic.numerics.grid import Grid, GridSpec, dequantize, fit_grid, quantize
from laconic.numerics.obs import BLOCK, damp
from tests.numerics.test_obs import hessian

WIDE = BLOCK + 12


def matrix(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def by_hand(W: torch.Tensor, H: torch.Tensor, order: list[int], grid: Grid, mask: torch.Tensor) -> torch.Tensor:
    """Equations 2 and 3 of GPTQ, one column after the other, the inverse taken anew each time."""
    W, result = W.double().clone(), torch.zeros(W.shape).double()
    for at, q in enumerate(order):
        left = order[at:]
        inverse = torch.linalg.inv(H[left][:, left])
        s, z = (part[:, 0].double() for part in grid.scale_and_zero(torch.tensor([q])))
        code = torch.where(s == 0, z, (W[:, q] / s + z).round()).clamp(0, 2**grid.bits - 1)
        result[:, q] = s * (code - z) * mask[:, q]
        W[:, left] -= ((W[:, q] - result[:, q]) / inverse[0, 0])[:, None] * inverse[0]
    return result


def values(W: torch.Tensor, H: torch.Tensor, spacing: GridSpec, mask: torch.Tensor, by_activity: bool) -> torch.Tensor:
    rounded = gptq(W, ColumnOrder.from_hessian(H, by_activity), spacing, mask)
    return dequantize(rounded.codes, rounded.grid).double() * mask


def setting(kept: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W, zero where its mask is False, and H."""
    mask = torch.rand(6, WIDE, generator=torch.Generator().manual_seed(1)) < kept
    return matrix(6, WIDE) * mask, damp(hessian(WIDE, 300), 0.01), mask


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_by_activity_it_is_the_formula_on_its_grids(group: int | None, kept: float, clip: bool) -> None:
    W, H, mask = setting(kept)
    order = ColumnOrder.from_hessian(H)
    assert order.columns.tolist() != list(range(WIDE))
    spacing = GridSpec(3, group, clip=clip)
    rounded = gptq(W, order, spacing, mask)
    if not clip:
        assert torch.equal(rounded.grid.scale, fit_grid(W, spacing, None, mask).scale)
    expected = by_hand(W, H, order.columns.tolist(), rounded.grid, mask)
    assert torch.allclose(dequantize(rounded.codes, rounded.grid).double() * mask, expected, atol=1e-6)


@pytest.mark.parametrize("group", [None, 16, WIDE])
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_ranges_are_those_of_what_the_sweep_meets_where_a_row_loses_less_by_them(
    group: int | None, kept: float
) -> None:
    W, H, mask = setting(kept)
    order, spacing = ColumnOrder.from_hessian(H), GridSpec(3, group)
    columns = order.columns.tolist()
    first = fit_grid(W, spacing, 1 / torch.linalg.inv(H).diagonal(), mask)
    before = by_hand(W, H, columns, first, mask)
    # What is met: W and, to the right of each column, the best answer to all errors to the left of it.
    met = W.double().clone()
    for at in range(1, WIDE):
        done, left = columns[:at], columns[at:]
        error = W.double()[:, done] - before[:, done]
        met[:, columns[at]] += (error @ H[done][:, left] @ torch.linalg.inv(H[left][:, left]))[:, 0]
    cost = torch.stack([1 / torch.linalg.inv(H[columns[at:]][:, columns[at:]])[0, 0] for at in range(WIDE)])
    second = fit_grid(met, spacing, cost[order.inverse], mask)
    after = by_hand(W, H, columns, second, mask)

    losses = [(E @ H * E).sum(1) for E in (W - before, W - after)]
    less = losses[1] < losses[0] if group is not None else (losses[1].sum() < losses[0].sum()).expand(6)
    assert less.any()
    expected = torch.where(less[:, None], after, before)
    assert torch.allclose(values(W, H, spacing, mask, True), expected, atol=1e-5)


def test_ranges_of_what_the_sweep_meets_lose_a_tenth_less_in_few_bits() -> None:
    W, H = matrix(40, 96), damp(hessian(96, 120), 0.01)
    spacing, mask = GridSpec(2, 96), torch.ones(40, 96, dtype=torch.bool)
    order = ColumnOrder.from_hessian(H)
    first = fit_grid(W, spacing, order.importance)
    E = [W - by_hand(W, H, order.columns.tolist(), first, mask), W - values(W, H, spacing, mask, True)]
    before, now = ((error @ H * error).sum() for error in E)
    assert now < 0.9 * before


@pytest.mark.parametrize("group", [50, 135, WIDE])
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_from_left_to_right_a_grid_is_fitted_to_the_weights_that_it_meets(group: int, kept: float) -> None:
    W, H, mask = setting(kept)
    spacing = GridSpec(3, group)
    rounded = gptq(W, ColumnOrder.from_hessian(H, False), spacing, mask)
    expected = by_hand(W, H, list(range(WIDE)), rounded.grid, mask)
    assert torch.allclose(dequantize(rounded.codes, rounded.grid).double() * mask, expected, atol=1e-6)
    importance = 1 / torch.linalg.inv(H).diagonal()
    # Up to each group, errors are moved on as by hand; its grid is the best of the weights as they then are.
    for start in range(0, WIDE, group):
        W_now = W.double()
        if start:
            done = W_now[:, :start] - expected[:, :start]
            # The best of what is to the right, given all errors to the left.
            W_now = torch.cat([expected[:, :start], W_now[:, start:]], 1)
            W_now[:, start:] += done @ H[:start, start:] @ torch.linalg.inv(H[start:, start:])
        here = slice(start, min(start + group, WIDE))
        fitted = fit_grid(W_now[:, here], spacing, importance[here], mask[:, here])
        assert torch.allclose(fitted.scale[:, 0], rounded.grid.scale[:, start // group], rtol=2e-3)


def test_with_a_diagonal_moment_it_rounds_to_nearest() -> None:
    W, H = matrix(8, 40), torch.diag(torch.linspace(1, 5, 40)).double()
    for by_activity in (True, False):
        for spacing in (GridSpec(3, 16, clip=False), GridSpec(4, None, clip=False), GridSpec(2, 40)):
            rounded = gptq(W, ColumnOrder.from_hessian(H, by_activity), spacing)
            assert torch.equal(rounded.codes, quantize(W, rounded.grid))
            assert spacing.clip or torch.equal(rounded.grid.scale, fit_grid(W, spacing).scale)


def test_of_every_choice_of_codes_it_is_near_the_best() -> None:
    """One row of four weights in two bits: 256 choices."""
    choices = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.uint8)
    losses = torch.zeros(60, 3)
    for seed in range(60):
        W, scales = matrix(1, 4, seed), 0.5 + torch.rand(4, generator=torch.Generator().manual_seed(seed)).double()
        H = (0.8 + 0.2 * torch.eye(4).double()) * torch.outer(scales, scales)
        rounded = gptq(W, ColumnOrder.from_hessian(H), GridSpec(2, 4))
        tried = torch.cat([rounded.codes, quantize(W, rounded.grid), choices])
        E = (W - rounded.grid.scale * (tried - rounded.grid.zero)).double()
        every = 0.5 * (E @ H * E).sum(1)
        losses[seed] = torch.stack([every[0], every[1], every[2:].min()])
    assert (losses[:, 0] >= losses[:, 2] * (1 - 1e-5)).all()
    assert losses[:, 0].mean() < 0.9 * losses[:, 1].mean()
    assert (losses[:, 0] <= losses[:, 2] * (1 + 1e-5)).float().mean() > 0.4


def test_what_is_to_be_zero_hands_on_what_was_left_for_it() -> None:
    """H = [[1, ½, ½], [½, 1, ½], [½, ½, 1]]; ½ of the first goes to the others, and the second can take none of it."""
    H = torch.full((3, 3), 0.5).double() + 0.5 * torch.eye(3).double()
    W = torch.tensor([[0.5, 0.0, 2.0]])
    # Whole numbers from 0 to 3: 0.5 is rounded to 0, which adds 0.5 / 3 to each of the others.
    one, mask = torch.ones(1, 3).double(), torch.tensor([[True, False, True]])
    allowed = WeightGrids((one * mask).T, (one * mask).T, 0 * one.T, 2)
    sweep = ColumnSweep(W.double().T.contiguous(), ColumnOrder.from_hessian(H, False).R)
    assert sweep.round(slice(0, 3), allowed.rows, bits=2).T.tolist() == [[0, 0, 2]]
    Wt = sweep.compensated
    assert torch.allclose(Wt[1], torch.tensor([0.5 / 3]).double())
    # ½ of what the second had to leave.
    assert torch.allclose(Wt[2], torch.tensor([2 + 0.5 / 3 + 0.5 / 6]).double())
