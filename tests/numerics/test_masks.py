"""Masks have exactly as many weights as asked for, whatever ties, and none where one is zero already."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.numerics.masks import (
    exclude_pruned,
    keep_in_groups,
    keep_in_matrix,
    keep_in_rows,
    keep_largest,
    zero_count,
)

shapes = st.tuples(st.integers(1, 7), st.integers(1, 9))
sparsities = st.floats(0, 1)


@st.composite
def tied(draw: st.DrawFn) -> torch.Tensor:
    """Scores of which many are equal."""
    rows, columns = draw(shapes)
    values = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=rows * columns, max_size=rows * columns)
    return torch.tensor(draw(values)).view(rows, columns)


@given(scores=tied(), sparsity=sparsities)
def test_counts_are_exact_under_ties(scores: torch.Tensor, sparsity: float) -> None:
    rows, columns = scores.shape
    assert (~keep_in_matrix(scores, sparsity)).sum() == zero_count(sparsity, rows * columns)
    assert ((~keep_in_rows(scores, sparsity)).sum(1) == zero_count(sparsity, columns)).all()


@given(scores=tied(), sparsity=sparsities)
def test_nothing_that_is_kept_scores_less_than_what_goes(scores: torch.Tensor, sparsity: float) -> None:
    mask = keep_in_matrix(scores, sparsity)
    if mask.any() and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()
    for line, kept in zip(scores, keep_in_rows(scores, sparsity), strict=True):
        if kept.any() and not kept.all():
            assert line[kept].min() >= line[~kept].max()


@given(scores=tied(), sparsity=sparsities, seed=st.integers(0, 99))
def test_zeros_that_are_there_stay_and_count(scores: torch.Tensor, sparsity: float, seed: int) -> None:
    support = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask = keep_in_matrix(exclude_pruned(scores, support), sparsity)
    assert not (mask & ~support).any()
    assert (~mask).sum() == max(zero_count(sparsity, mask.numel()), int((~support).sum()))
    rows = keep_in_rows(exclude_pruned(scores, support), sparsity)
    assert not (rows & ~support).any()
    there = (~support).sum(1)
    assert torch.equal((~rows).sum(1), there.clamp(min=zero_count(sparsity, scores.shape[1])))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_of_equal_scores_the_first_stay(dtype: torch.dtype) -> None:
    mask = keep_in_matrix(torch.ones(4, 8, dtype=dtype), 0.5)
    assert mask[:2].all()
    assert not mask[2:].any()


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 3), (3, 4)])
def test_every_group_keeps_its_n_largest(pattern: tuple[int, int]) -> None:
    n, m = pattern
    scores = torch.rand(10, 4 * m)
    mask = keep_in_groups(scores, pattern)
    assert (mask.view(-1, m).sum(1) == n).all()
    for group, kept in zip(scores.view(-1, m), mask.view(-1, m), strict=True):
        assert set(group[kept].tolist()) == set(group.sort(descending=True).values[:n].tolist())
    assert (keep_in_groups(torch.zeros(6, 2 * m), pattern).view(-1, m).sum(1) == n).all()


def test_a_group_with_fewer_left_keeps_these() -> None:
    support = torch.tensor([[True, False, False, False, True, True, True, True]])
    mask = keep_in_groups(exclude_pruned(torch.rand(1, 8), support), (2, 4))
    assert mask[0, 0]
    assert mask.view(2, 4).sum(1).tolist() == [1, 2]


def test_rows_may_keep_different_numbers() -> None:
    scores = torch.rand(5, 6)
    kept = torch.tensor([0, 1, 3, 5, 6])
    assert torch.equal(keep_largest(scores, kept).sum(1), kept)
