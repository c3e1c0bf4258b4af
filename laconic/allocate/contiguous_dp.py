"""Choose which items of a sequence to drop, if the cost of dropping a run of neighbours is not the sum of its items.

Let c(i, j) be the cost of dropping the run [i, j) alone, and D(j, k, r) the least cost of dropping k of the first j
items in r runs. Then

    D(j, k, r) = min( D(j − 1, k, r),  min_i D(i − 1, k − (j − i), r − 1) + c(i, j) ),    D(−1, 0, 0) = D(0, 0, 0) = 0.

Item i − 1 in front of a run is kept, so no two runs are adjacent; two adjacent runs count as one run with its own cost.
The result is exact if costs of different runs add up. It takes N K³ additions to drop up to K of N items.
"""

from collections.abc import Mapping
from math import inf

Run = tuple[int, int]
"""[i, j): from the first dropped item up to the first kept one."""
Size = tuple[int, int]
"""(number of dropped items, number of runs)."""


def contiguous_dp(costs: Mapping[Run, float], length: int, drop: int) -> dict[Size, tuple[float, tuple[Run, ...]]]:
    """Find the runs of least total cost for each number of dropped items and of runs.

    Args:
        costs: cost of dropping a run [i, j) alone; runs that are missing cannot be dropped.
        length: number of items.
        drop: largest number of items to drop.

    Returns:
        (cost, runs in order), by (number of dropped items, number of runs).

    Example:
        >>> costs = {(0, 1): 1.0, (1, 2): 5.0, (2, 3): 2.0, (0, 2): 9.0, (1, 3): 9.0}
        >>> contiguous_dp(costs, length=3, drop=2)[2, 2]
        (3.0, ((0, 1), (2, 3)))
    """
    # least[j][k, r]: D(j, k, r) and its runs.
    least: list[dict[Size, tuple[float, tuple[Run, ...]]]] = [{(0, 0): (0.0, ())}]
    for stop in range(1, length + 1):
        here = dict(least[stop - 1])
        for start in range(stop):
            cost = costs.get((start, stop), inf)
            if cost == inf:
                continue
            for (dropped, _), (paid, runs) in least[max(start - 1, 0)].items():
                size = dropped + stop - start, len(runs) + 1
                if size[0] <= drop and paid + cost < here.get(size, (inf, ()))[0]:
                    here[size] = (paid + cost, (*runs, (start, stop)))
        least.append(here)
    return least[length]
