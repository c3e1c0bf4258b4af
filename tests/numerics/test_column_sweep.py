"""Terms of errors in bfloat16: where they are used, and what they add to the loss."""

import pytest
import torch

from laconic.numerics import column_sweep
from laconic.numerics.column_sweep import ColumnSweep, coarsen, columns_of
from laconic.numerics.factors import UnitFactor
from laconic.numerics.grid import GridSpec, dequantize, fit_grid
from laconic.numerics.obs import damp
from laconic.numerics.triangle import Triangle
from tests.numerics.test_gptq import matrix
from tests.numerics.test_obs import hessian


@pytest.fixture
def with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_sweep, "_multiplies_bfloat16", lambda device: True)


def test_they_add_less_than_a_hundredth_to_the_loss_where_they_are_used(with_instructions: None) -> None:
    n = column_sweep.COARSE_FROM
    W, H = matrix(64, n), damp(hessian(n, 600), 0.01)
    factor = UnitFactor.from_moment(H)
    grid, columns = fit_grid(W, GridSpec(4, 64)), torch.arange(n)
    coarse = coarsen(factor.R, factor.D)
    assert {above.dtype for above in coarse.above} == {torch.bfloat16}
    losses = []
    for R in (factor.R, coarse):
        codes = ColumnSweep(W.T.contiguous(), R).round(slice(0, n), columns_of(grid, columns, None), 4).T
        E = (W - dequantize(codes, grid)).double()
        losses.append((E @ H * E).sum())
    assert losses[0] != losses[1]
    assert losses[1] < 1.01 * losses[0]


def test_large_terms_are_computed_in_fp32(with_instructions: None) -> None:
    n = column_sweep.COARSE_FROM
    assert not is_coarsened(torch.eye(n) + 3 * torch.ones(n, n).triu(1))
    assert is_coarsened(torch.eye(n))
    assert not is_coarsened(torch.eye(n - 1))


def test_without_instructions_for_bfloat16_terms_are_computed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    R = torch.eye(column_sweep.COARSE_FROM)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert not is_coarsened(R)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert is_coarsened(R)


def test_a_factor_in_fp64_is_rounded_to_fp32_for_sweeps(with_instructions: None) -> None:
    n = column_sweep.COARSE_FROM
    R = torch.eye(n).double() + 3 * torch.ones(n, n).double().triu(1)
    assert coarsen(Triangle.from_dense(R), torch.ones(n).double()).dense().dtype == torch.float32


def is_coarsened(R: torch.Tensor) -> bool:
    return coarsen(Triangle.from_dense(R), torch.ones(len(R)).double()).is_coarse
