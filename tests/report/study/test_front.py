"""The front against its definition, on every point of many small clouds."""

from hypothesis import given
from hypothesis import strategies as st

from laconic.report.study.charts import pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(POINTS, st.booleans())
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]], higher: bool) -> None:
    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        better = one[1] > other[1] if higher else one[1] < other[1]
        return one[0] <= other[0] and (better or one[1] == other[1]) and one != other

    found = pareto_front(points, higher_is_better=higher)
    expected = {point for point in points if not any(beats(other, point) for other in points)}
    assert {points[index] for index in found} == expected
    assert len(found) == len(expected), "equal points stand for each other"
    assert all(points.index(points[index]) == index for index in found), "the first of equal ones"
    costs = [points[index][0] for index in found]
    assert costs == sorted(costs)
