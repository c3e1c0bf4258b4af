"""Structured OBS against brute force: what taking parts out costs, which goes first, and the refit that is left."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from laconic.numerics.structured import PENDING, Elimination, damp_active, part_columns, refit_columns, removal_order

SHAPES = [(5, 12, 3), (6, 10, 1), (3, 8, 2)]


def problem(m: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W, H and F of correlated inputs and gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    X, g = draw(4 * n, n) @ draw(n, n), draw(4 * m, m) @ draw(m, m)
    return draw(m, n), X.T @ X / len(X), g.T @ g / len(g)


def least_loss(W: Tensor, H: Tensor, F: Tensor, kept: Tensor) -> float:
    """½ tr(F E H E^T) of the best matrix on the columns `kept`: normal equations, for every entry at once."""
    m, k = len(W), len(kept)
    # vec row by row: the Hessian of ½ tr(F E H E^T) in the kept entries is F ⊗ H_KK.
    Z = torch.linalg.solve(torch.kron(F, H[kept][:, kept]), (F @ W @ H[:, kept]).flatten()).reshape(m, k)
    E = W.clone()
    E[:, kept] -= Z
    return 0.5 * (F @ E @ H @ E.T).trace().item()


@pytest.mark.parametrize(("m", "n", "d"), SHAPES)
def test_costs_add_up_to_the_loss_of_the_refit(m, n, d):
    W, H, F = problem(m, n)
    order, costs = removal_order([Elimination(W, H, F, d)])
    for gone in range(1, n // d):
        kept = part_columns([part for part in range(n // d) if part not in order[:gone]], d)
        assert sum(costs[:gone]) == pytest.approx(least_loss(W, H, F, kept), rel=1e-9)


@pytest.mark.parametrize(("m", "n", "d"), SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_part_costs_what_it_would_and_the_cheapest_goes_first(m, n, d, seed):
    W, H, F = problem(m, n, seed)
    without = [
        least_loss(W, H, F, part_columns([other for other in range(n // d) if other != part], d))
        for part in range(n // d)
    ]
    elimination = Elimination(W, H, F, d)
    torch.testing.assert_close(elimination.costs(), torch.tensor(without, dtype=torch.float64), rtol=1e-9, atol=0)
    assert removal_order([elimination])[0][0] == min(range(n // d), key=without.__getitem__)


def test_a_part_that_is_gone_costs_no_more():
    W, H, F = problem(4, 6)
    elimination = Elimination(W, H, F, 1)
    elimination.remove(2)
    assert elimination.costs().isinf().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("d", [1, 3])
def test_what_is_put_off_changes_nothing(monkeypatch, d):
    """Bringing P and G up to date after every part, and after many, gives the same order and costs."""
    W, H, F = problem(5, 3 * PENDING)
    late = removal_order([Elimination(W, H, F, d)])
    monkeypatch.setattr("laconic.numerics.structured.PENDING", 1)
    at_once = removal_order([Elimination(W, H, F, d)])
    assert late[0] == at_once[0]
    assert late[1] == pytest.approx(at_once[1], rel=1e-6)


def test_several_matrices_lose_the_same_parts():
    problems = [problem(4, 8, seed) for seed in (0, 1)]
    order, costs = removal_order([Elimination(*each, 2) for each in problems])
    every = {
        parts: sum(least_loss(*each, part_columns([p for p in range(4) if p not in parts], 2)) for each in problems)
        for parts in combinations(range(4), 1)
    }
    assert (order[0],) == min(every, key=every.__getitem__)
    assert costs[0] == pytest.approx(min(every.values()))


def test_removals_stop_where_they_are_told():
    order, costs = removal_order([Elimination(*problem(4, 9), 3)], least=2)
    assert len(order) == len(costs) == 1


@pytest.mark.parametrize(("m", "n", "d"), SHAPES)
def test_the_refit_is_least_squares_whatever_the_gradients(m, n, d):
    W, H, F = problem(m, n)
    kept = part_columns([0, n // d - 1], d)
    E = W.clone()
    E[:, kept] -= refit_columns(W, H, kept)
    assert 0.5 * (F @ E @ H @ E.T).trace().item() == pytest.approx(least_loss(W, H, F, kept), rel=1e-9)


def test_a_column_that_is_the_sum_of_others_is_made_up_for_wholly():
    W, H, _ = problem(3, 5)
    mix = torch.eye(6, dtype=torch.float64)[:, :5]
    mix[5] = torch.tensor([1.0, 1, 0, 0, 0])
    singular = mix @ H @ mix.T
    wide = torch.cat([W, torch.ones(3, 1)], dim=1)
    kept = torch.arange(5)
    E = wide.clone()
    E[:, kept] -= refit_columns(wide, singular, kept)
    assert (E @ singular @ E.T).trace() < 1e-12 * (wide @ singular @ wide.T).trace()
    assert removal_order([Elimination(wide, damp_active(singular), torch.eye(3, dtype=torch.float64), 1)])[0][0] in (
        0,
        1,
        5,
    )


def test_damping_draws_the_refit_towards_the_columns_as_they_are():
    W, H, _ = problem(3, 6)
    kept = torch.arange(4)
    free, held = refit_columns(W, H, kept), refit_columns(W, damp_active(H), kept)
    assert (held - W[:, kept]).norm() < (free - W[:, kept]).norm()


def test_a_column_that_was_always_zero_goes_first():
    W, H, F = problem(4, 7)
    W[:, 3] *= 10
    H[3], H[:, 3] = 0, 0
    order, costs = removal_order([Elimination(W, damp_active(H), F, 1)])
    assert order[0] == 3 and costs[0] < 0.1 * costs[1]


def test_a_layer_that_saw_nothing_is_weighed_by_its_weights():
    W = problem(3, 4)[0]
    W[:, 1] *= 0.01
    zero = torch.zeros(4, 4)
    assert torch.equal(damp_active(zero), torch.eye(4, dtype=torch.float64))
    assert removal_order([Elimination(W, damp_active(zero), torch.eye(3, dtype=torch.float64), 1)])[0][0] == 1
    torch.testing.assert_close(refit_columns(W, damp_active(zero), torch.tensor([0, 2])), W[:, [0, 2]])
