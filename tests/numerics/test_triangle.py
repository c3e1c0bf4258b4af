"""Triangles in panels against the square matrix."""

import pytest
import torch

from laconic.numerics.triangle import PANEL, Triangle


def square(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, n, generator=generator).double() / n).triu(1) + torch.eye(n).double()


@pytest.mark.parametrize("n", [1, 7, PANEL, 2 * PANEL + 9])
def test_the_panels_are_the_matrix(n: int) -> None:
    R = square(n)
    assert torch.equal(Triangle.from_dense(R).dense(), R)
    assert torch.equal(Triangle.from_dense(R + torch.ones(n, n).tril(-1)).dense(), R)
    X = torch.randn(n, 3, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(R @ Triangle.from_dense(R).solve(X), X)
    assert torch.allclose(R.T @ Triangle.from_dense(R).solve_transposed(X), X)


@pytest.mark.parametrize("rows", [(0, 4), (PANEL - 2, PANEL + 3), (0, 2 * PANEL + 9), (2 * PANEL, 2 * PANEL + 9)])
@pytest.mark.parametrize(
    "columns", [(0, 5), (PANEL - 1, PANEL + 1), (PANEL - 1, 2 * PANEL + 1), (2 * PANEL, 2 * PANEL + 1)]
)
def test_a_part_may_cross_panels(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    R = square(2 * PANEL + 9)
    assert torch.equal(Triangle.from_dense(R).part(slice(*rows), slice(*columns)), R[slice(*rows), slice(*columns)])


def test_rows_above_the_corners_may_have_fewer_bits() -> None:
    R = square(PANEL + 9)
    triangle = Triangle.from_dense(R)
    assert triangle.to(torch.float64) is triangle
    coarse = triangle.to(torch.float64, above=torch.bfloat16)
    assert coarse.is_coarse
    assert not triangle.is_coarse
    expected = R.clone()
    expected[:PANEL, PANEL:] = R[:PANEL, PANEL:].bfloat16().double()
    assert torch.equal(coarse.dense(), expected)
