"""Masks have exactly as many weights as asked for, whatever ties, and none where one is zero already.

One threshold over many matrices, against a sort of everything.
"""

import math
import weakref
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.numerics import masks
from laconic.numerics.masks import (
    ScoredMatrix,
    count_pruned,
    exclude_pruned,
    keep_in_groups,
    keep_in_matrix,
    keep_in_rows,
    keep_largest,
    ordered_integers,
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


SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-45, 1.17e-38, 3.4e38, 0.1]
scores = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False), st.integers(0, 3).map(float))


def field_of(values: Sequence[float], cap: int | None = None, floor: int = 0) -> ScoredMatrix:
    tensor = torch.tensor(values, dtype=torch.float32)
    return ScoredMatrix(lambda: tensor.split(3), len(values) if cap is None else cap, floor)


def by_sorting(matrices: Sequence[Sequence[float]], caps: Sequence[int], floors: Sequence[int], k: int) -> list[int]:
    """Take the smallest scores one by one, ties in the order of the matrices, each within its cap; floors are free."""
    lost = [0] * len(matrices)
    entries = sorted((value, index) for index, values in enumerate(matrices) for value in values)
    # What the floors take in any case is paid first, and then not again.
    for _, index in entries:
        gone = [max(taken, floor) for taken, floor in zip(lost, floors, strict=True)]
        if sum(gone) == k:
            return gone
        lost[index] += lost[index] < max(caps[index], floors[index])
    return [max(taken, floor) for taken, floor in zip(lost, floors, strict=True)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[int], list[int], int]:
    matrices = draw(st.lists(st.lists(scores, min_size=1, max_size=12), min_size=1, max_size=5))
    matrices = [torch.tensor(values, dtype=torch.float32).tolist() for values in matrices]
    caps = [draw(st.integers(0, len(values))) for values in matrices]
    floors = [draw(st.sampled_from([0, draw(st.integers(0, len(values)))])) for values in matrices]
    most = sum(max(pair) for pair in zip(caps, floors, strict=True))
    return matrices, caps, floors, draw(st.integers(sum(floors), most))


@given(problems())
@settings(max_examples=40, deadline=None)
def test_it_is_the_sort_of_everything(problem: tuple[list[list[float]], list[int], list[int], int]) -> None:
    matrices, caps, floors, k = problem
    fields = [field_of(*entry) for entry in zip(matrices, caps, floors, strict=True)]
    lost = count_pruned(fields, k)
    assert lost == by_sorting(matrices, caps, floors, k)
    assert sum(lost) == k


def test_real_sizes_against_kthvalue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "CHUNK", 1000)
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(n, 300, generator=generator) * scale for n, scale in ((50, 1.0), (70, 0.01), (9, 1e3))]
    everything = torch.cat([matrix.abs().flatten() for matrix in matrices])
    fields = [ScoredMatrix(lambda matrix=matrix: [matrix.abs()], matrix.numel()) for matrix in matrices]
    for k in (1, 777, len(everything) // 2, len(everything)):
        tau = everything.kthvalue(k).values
        assert count_pruned(fields, k) == [int((matrix.abs() <= tau).sum()) for matrix in matrices]


def test_a_cap_sends_the_rest_to_the_others() -> None:
    small, large = [0.1] * 10, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert count_pruned([field_of(small), field_of(large)], 10) == [10, 0]
    assert count_pruned([field_of(small, cap=6), field_of(large)], 10) == [6, 4]


def test_equal_scores_go_in_the_order_of_the_matrices() -> None:
    same = [field_of([2.0] * 4, cap=3), field_of([2.0] * 4), field_of([2.0] * 4)]
    assert count_pruned(same, 5) == [3, 2, 0]
    assert count_pruned(same, 0) == [0, 0, 0]
    assert count_pruned(same, 11) == [3, 4, 4]


def test_a_floor_holds_even_above_the_cap_and_counts() -> None:
    fields = [field_of([5.0] * 10, cap=2, floor=6), field_of([1.0] * 10)]
    assert count_pruned(fields, 6) == [6, 0]
    assert count_pruned(fields, 9) == [6, 3]


@pytest.mark.parametrize("k", [-1, 3, 13])
def test_more_or_less_than_is_allowed_is_refused(k: int) -> None:
    fields = [field_of([1.0] * 10, cap=8), field_of([1.0] * 4, floor=4)]
    with pytest.raises(ValueError, match="between the floors and the caps"):
        count_pruned(fields, k)


def test_nan_is_the_last_to_go() -> None:
    assert count_pruned([field_of([math.nan, 1.0]), field_of([math.inf, -math.inf])], 3) == [1, 2]
    assert count_pruned([field_of([math.nan, -math.nan, 1.0]), field_of([math.inf])], 2) == [1, 1]


def test_keys_have_the_order_of_the_numbers() -> None:
    values = torch.tensor([-math.inf, -3.4e38, -1.0, -1e-45, 0.0, 1e-45, 1.0, 3.4e38, math.inf, math.nan])
    assert (ordered_integers(values).diff() > 0).all()
    assert torch.equal(ordered_integers(torch.tensor([-0.0])), ordered_integers(torch.tensor([0.0])))


def test_no_more_than_one_piece_of_the_scores_is_held() -> None:
    alive = peak = 0

    def died() -> None:
        nonlocal alive
        alive -= 1

    def pieces(seed: int) -> Iterator[torch.Tensor]:
        nonlocal alive, peak
        for number in range(20):
            piece = torch.randn(500, generator=torch.Generator().manual_seed(20 * seed + number))
            alive += 1
            weakref.finalize(piece, died)
            peak = max(peak, alive)
            yield piece

    fields = [ScoredMatrix(lambda seed=seed: pieces(seed), 10_000) for seed in range(5)]
    assert sum(count_pruned(fields, 25_000)) == 25_000
    # The generator and the loop that reads it each name one until the next is there.
    assert alive == 0 and peak <= 2
