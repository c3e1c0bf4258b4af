"""Runs of least cost: against every subset, and where none can be."""

from itertools import combinations, pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress.depth.selection import contiguous_dp


def runs_in(subset: tuple[int, ...]) -> list[tuple[int, int]]:
    """The maximal runs of consecutive numbers in `subset`."""
    starts = [i for i in subset if i - 1 not in subset]
    stops = [i + 1 for i in subset if i + 1 not in subset]
    return list(zip(starts, stops, strict=True))


def cheapest(costs: dict[tuple[int, int], float], length: int, drop: int, count: int) -> float:
    """By looking at every subset of so many runs."""
    subsets = (runs_in(subset) for subset in combinations(range(length), drop))
    return min((sum(costs.get(run, inf) for run in runs) for runs in subsets if len(runs) == count), default=inf)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), length=st.integers(1, 10))
def test_runs_are_those_of_brute_force(data, length):
    drop = data.draw(st.integers(0, length))
    # Not only sums of items: neighbours may cost more or less together, and some runs cannot be dropped.
    every = [(i, j) for i in range(length) for j in range(i + 1, length + 1)]
    values = data.draw(st.lists(st.one_of(st.floats(0, 9), st.just(inf)), min_size=len(every), max_size=len(every)))
    costs = {run: value for run, value in zip(every, values, strict=True) if value != inf}
    found = contiguous_dp(costs, length, drop)
    assert all(dropped <= drop for dropped, _ in found)
    for count in range(drop + 1):
        least = cheapest(costs, length, drop, count)
        if least == inf:
            assert (drop, count) not in found
            continue
        total, runs = found[drop, count]
        assert total == pytest.approx(least)
        assert len(runs) == count and sum(j - i for i, j in runs) == drop
        assert all(first[1] < second[0] for first, second in pairwise(runs)), "runs must not touch"
        assert sum(costs[run] for run in runs) == pytest.approx(least)


def test_neighbours_are_one_run():
    """Alone each of the middle two is cheap; together they are not, and that is what they cost."""
    costs = {(0, 1): 3.0, (1, 2): 0.1, (2, 3): 0.1, (3, 4): 0.5, (0, 2): 9.0, (1, 3): 9.0, (2, 4): 9.0}
    assert contiguous_dp(costs, 4, 2)[2, 2] == (pytest.approx(0.6), ((1, 2), (3, 4)))
    assert contiguous_dp(costs, 4, 2)[2, 1] == (9.0, ((0, 2),))


def test_nothing_dropped_is_no_run():
    assert contiguous_dp({}, 5, 3) == {(0, 0): (0.0, ())}
