"""The column sweep against the surgeon's formula by hand, and against every mask with its best values.

What is left of a weight where some of the others are missing, against regressions with some missing.
"""

import itertools

import pytest
import torch

from laconic.numerics.masks import keep_in_groups, keep_in_matrix
from laconic.numerics.obs import BLOCK, correlations, damp, inverse_cholesky, prune_columns, residual_curvature


def hessian(n: int, tokens: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    X = torch.randn(tokens, n, dtype=torch.float64, generator=generator)
    X = X @ torch.randn(n, n, dtype=torch.float64, generator=generator)
    return X.T @ X / tokens


def test_three_columns_by_hand() -> None:
    """H = [[2, 1, 0], [1, 2, 0], [0, 0, 1]], so H^{-1} = [[2/3, −1/3, 0], [−1/3, 2/3, 0], [0, 0, 1]].

    Scores w² / [H^{-1}]_qq of w = (1, 2, 3), each taken with all columns to its right free: 1 / (2/3) = 1.5;
    of column 2 with column 1 fixed, 4 / (1/2) = 8; 9. The first goes, and moves the second by
    −(1 / (2/3)) (−1/3) = ½.
    """
    H = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]], dtype=torch.float64)
    U = inverse_cholesky(H)
    assert torch.allclose(U.T @ U, torch.tensor([[2, -1, 0], [-1, 2, 0], [0, 0, 3]], dtype=torch.float64) / 3)
    assert torch.allclose(U.diagonal().square(), torch.tensor([2 / 3, 1 / 2, 1], dtype=torch.float64))
    w = torch.tensor([[1.0, 2, 3]], dtype=torch.float64)
    seen = []

    def keep(scores: torch.Tensor, start: int) -> torch.Tensor:
        seen.append(scores)
        return keep_in_matrix(scores, 1 / 3)

    W, mask = prune_columns(w, U, keep)
    assert torch.allclose(seen[0], torch.tensor([[1.5, 8, 9]], dtype=torch.float64))
    assert mask.tolist() == [[False, True, True]]
    assert torch.allclose(W, torch.tensor([[0, 2.5, 3]], dtype=torch.float64))


def test_three_columns_against_every_mask() -> None:
    """The sweep finds the cheapest way to lose one of three weights, with the best values for the others."""
    H = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]], dtype=torch.float64)
    w = torch.tensor([[1.0, 2, 3]], dtype=torch.float64)
    costs = {}
    for kept in itertools.combinations(range(3), 2):
        K = list(kept)
        z = torch.zeros(3, dtype=torch.float64)
        z[K] = torch.linalg.solve(H[K][:, K], H[K] @ w[0])
        costs[kept] = ((w[0] - z) @ H @ (w[0] - z)).item()
    W, mask = prune_columns(w, inverse_cholesky(H), lambda scores, start: keep_in_matrix(scores, 1 / 3))
    error = w[0] - W[0]
    assert tuple(mask[0].nonzero().squeeze(1).tolist()) == min(costs, key=lambda kept: costs[kept])
    assert (error @ H @ error).item() == pytest.approx(min(costs.values()))


def test_the_factor_is_that_of_the_inverse() -> None:
    H = hessian(30)
    U = inverse_cholesky(H)
    assert torch.equal(U, U.triu())
    assert torch.allclose(U.T @ U @ H, torch.eye(30, dtype=torch.float64), atol=1e-8)


def test_blocks_change_nothing_of_a_mask_that_is_given() -> None:
    """Errors moved in one product after each block are those moved at once, column by column."""
    n = 2 * BLOCK + 22
    H, W = damp(hessian(n, 2 * n), 0.01), torch.randn(6, n, dtype=torch.float64)
    U, mask = inverse_cholesky(H), torch.rand(6, n) < 0.5
    found, _ = prune_columns(W, U, lambda scores, start: mask[:, start : start + scores.shape[1]])
    H_inverse, expected = torch.linalg.inv(H), W.clone()
    for q in range(n):
        # [H^{-1}] of the columns from q on, each removal a step of the surgeon.
        gone = ~mask[:, q]
        shift = expected[:, q, None] / H_inverse[0, 0] * H_inverse[0]
        expected[gone, q:] -= shift[gone]
        H_inverse = (H_inverse - torch.outer(H_inverse[:, 0], H_inverse[0]) / H_inverse[0, 0])[1:, 1:]
    assert torch.allclose(found, expected * mask, atol=1e-8)


def test_a_group_is_chosen_once_all_before_it_is_made_up_for() -> None:
    H, W = hessian(12), torch.randn(5, 12, dtype=torch.float64)
    starts = []

    def keep(scores: torch.Tensor, start: int) -> torch.Tensor:
        starts.append(start)
        return keep_in_groups(scores, (2, 4))

    _, mask = prune_columns(W, inverse_cholesky(H), keep, step=4)
    assert starts == [0, 4, 8]
    assert (mask.view(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("step", [3, 5, 7, 200])
def test_groups_that_do_not_divide_a_block(step: int) -> None:
    n = 2 * step if step > BLOCK else step * (BLOCK // step + 3)
    H, W = damp(hessian(n, 2 * n), 0.01), torch.randn(3, n, dtype=torch.float64)
    found, mask = prune_columns(W, inverse_cholesky(H), lambda scores, start: keep_in_groups(scores, (1, step)), step)
    assert (mask.view(-1, step).sum(1) == 1).all()
    assert torch.equal(found != 0, mask)
    again, _ = prune_columns(W, inverse_cholesky(H), lambda scores, start: mask[:, start : start + scores.shape[1]])
    assert torch.allclose(found, again)


def test_damping_of_nothing_seen_is_the_identity() -> None:
    assert torch.equal(damp(torch.zeros(4, 4), 0.01), torch.eye(4, dtype=torch.float64))
    assert torch.equal(damp(torch.zeros(4), 0.01), torch.ones(4, dtype=torch.float64))
    C = hessian(4)
    level = 0.1 * C.diagonal().mean()
    assert torch.allclose(damp(C, 0.1), C + level * torch.eye(4, dtype=torch.float64))
    assert torch.allclose(damp(C.diagonal(), 0.1), C.diagonal() + level)


def moment(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + seed)
    X = torch.randn(200, n, dtype=torch.float64, generator=generator)
    X = X @ torch.randn(n, n, dtype=torch.float64, generator=generator)
    return X.T @ X / 200


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_it_is_the_least_error_of_making_up_with_some_missing(missing: float) -> None:
    """min_b E (e − δ∘b / (1 − s))^T A (e − δ∘b / (1 − s)), over every pattern δ of what is there, by enumeration."""
    F, H = moment(2), moment(3)
    A, at = torch.kron(F, H), 4
    others = [k for k in range(6) if k != at]
    S, r = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for pattern in range(2**5):
        there = torch.tensor([pattern >> k & 1 for k in range(5)], dtype=torch.float64)
        chance = (1 - missing) ** there.sum() * missing ** (5 - there.sum())
        scaled = there / (1 - missing)
        S += chance * torch.outer(scaled, scaled) * A[others][:, others]
        r += chance * scaled * A[others, at]
    expected = A[at, at] - r @ torch.linalg.solve(S, r)
    found = residual_curvature(correlations(F), correlations(H), missing)
    assert found.shape == (2, 3)
    assert found[1, 1].item() == pytest.approx(expected.item(), rel=1e-8)


def test_it_rises_from_the_surgeons_to_the_diagonal() -> None:
    F, H = moment(8), moment(20)
    known = correlations(F), correlations(H)
    steps = torch.stack([residual_curvature(*known, missing) for missing in (0.0, 0.2, 0.5, 0.8, 0.99, 1 - 1e-9)])
    assert (steps.diff(dim=0) > 0).all()
    surgeon = 1 / torch.outer(torch.linalg.inv(F).diagonal(), torch.linalg.inv(H).diagonal())
    assert torch.allclose(steps[0], surgeon)
    assert torch.allclose(steps[-1], torch.outer(F.diagonal(), H.diagonal()), rtol=1e-5)


def test_what_is_independent_makes_up_for_nothing() -> None:
    a, b = torch.rand(4, dtype=torch.float64) + 0.1, torch.rand(7, dtype=torch.float64) + 0.1
    for F in (a, torch.diag(a)):
        for H in (b, torch.diag(b)):
            assert torch.allclose(residual_curvature(correlations(F), correlations(H), 0.4), torch.outer(a, b))


def test_rows_alone_make_up_where_outputs_are_independent() -> None:
    H = moment(9)
    found = residual_curvature(correlations(torch.ones(3)), correlations(H), 0.6)
    assert torch.allclose(found, found[:1].expand(3, 9))
    gamma = 1.5
    schur = 1 / torch.linalg.inv(H + gamma * torch.diag(H.diagonal())).diagonal() - gamma * H.diagonal()
    assert torch.allclose(found[0], schur)
