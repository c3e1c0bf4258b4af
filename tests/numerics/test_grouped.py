"""Grouped sums against one loop over experts and rows in fp64, with experts without rows and in any dtype."""

import pytest
import torch

from laconic.numerics.gram import symmetrize
from laconic.numerics.grouped import add_grams, add_squared_products, add_sums, raise_maxima, sum_squares

EXPERTS, N, M = 5, 7, 6
COUNTS = [[4, 0, 9, 1, 3], [0, 0, 0, 0, 8], [0, 0, 0, 0, 0]]


def case(counts: list[int], dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(sum(counts))
    rows = sum(counts)
    X, G = (torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype) for width in (N, M))
    w = torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype)
    return X, G, w, torch.tensor(counts).cumsum(0).int()


def rows_of(expert: int, ends: torch.Tensor) -> range:
    return range(int(ends[expert - 1]) if expert else 0, int(ends[expert]))


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_moments_are_those_of_a_loop_over_rows(counts, dtype, tolerance):
    X, G, w, ends = case(counts, dtype)
    grams, gradients = (torch.zeros(EXPERTS, width, width, dtype=torch.float64) for width in (N, M))
    sums, maxima = torch.zeros(2, EXPERTS, N, dtype=torch.float64)
    add_grams(grams, X, w, ends)
    add_grams(gradients, G, None, ends)
    add_sums(sums, X, w, ends)
    raise_maxima(maxima, X, ends)
    masses = sum_squares(w, ends)
    for expert in range(EXPERTS):
        C, F = torch.zeros(N, N, dtype=torch.float64), torch.zeros(M, M, dtype=torch.float64)
        mean, largest, mass = torch.zeros_like(C[0]), torch.zeros_like(C[0]), 0.0
        for row in rows_of(expert, ends):
            x, g, weight = X[row].double(), G[row].double(), float(w[row])
            C += weight**2 * torch.outer(x, x)
            F += torch.outer(g, g)
            mean += weight**2 * x
            largest = torch.maximum(largest, x.abs())
            mass += weight**2
        torch.testing.assert_close(symmetrize(grams[expert]), C, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(symmetrize(gradients[expert]), F, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(sums[expert], mean, rtol=tolerance, atol=tolerance)
        assert torch.equal(maxima[expert], largest)
        assert masses[expert].item() == pytest.approx(mass, rel=tolerance, abs=1e-15)


@pytest.mark.parametrize("counts", COUNTS)
def test_products_are_squared_once_for_each_expert_and_sequence(counts):
    X, G, _, ends = case(counts)
    # Every expert has rows of the same two sequences, which must not run into those of the next expert.
    sequences = torch.cat([torch.arange(count) * 2 // max(count, 1) for count in counts])
    totals = torch.ones(EXPERTS, M, N, dtype=torch.float64)
    add_squared_products(totals, G, X, sequences, ends)
    for expert in range(EXPERTS):
        expected = torch.ones(M, N, dtype=torch.float64)
        for sequence in (0, 1):
            product = torch.zeros(M, N, dtype=torch.float64)
            for row in rows_of(expert, ends):
                if sequences[row] == sequence:
                    product += torch.outer(G[row], X[row])
            expected += product.square()
        torch.testing.assert_close(totals[expert], expected, rtol=1e-12, atol=1e-12)


def test_wide_moments_are_summed_in_blocks_of_their_upper_triangle():
    """Above 128 columns `add_gram` leaves out the lower blocks; the sums of all calls add up."""
    X = torch.randn(12, 300, dtype=torch.float64)
    totals = torch.zeros(2, 300, 300, dtype=torch.float64)
    for part in X.split(6):
        add_grams(totals, part, torch.full((6,), 2.0, dtype=torch.float64), torch.tensor([4, 6]))
    first, second = torch.cat([X[:4], X[6:10]]), torch.cat([X[4:6], X[10:]])
    for total, rows in zip(totals, (first, second), strict=True):
        torch.testing.assert_close(symmetrize(total), 4 * rows.T @ rows, rtol=1e-12, atol=1e-12)
