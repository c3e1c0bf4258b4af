"""One threshold over many matrices, against a sort of everything."""

import math
import weakref
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.numerics import masks
from laconic.numerics.masks import ScoredMatrix, count_pruned, ordered_integers

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
