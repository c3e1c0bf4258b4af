"""The Pareto front: what nothing else beats at less cost."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """Places of those (cost, quality) that no other point has beaten, in rising order of cost.

    A point beats another where neither its cost nor its quality is worse, and one of them is better. Of equal points
    the first stands for all.
    """
    sign = -1 if higher_is_better else 1
    best = float("inf")
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda at: (points[at][0], sign * points[at][1], at)):
        if sign * points[index][1] < best:
            best = sign * points[index][1]
            found.append(index)
    return found
