"""Which of a row of items to drop, where dropping neighbours together costs what it costs, and runs apart add up.

Let c(i, j) be the cost of dropping the run [i, j) alone, and D(j, k, r) the least of dropping k of the first j items in
r runs. Then

    D(j, k, r) = min( D(j − 1, k, r),  min_i D(i − 1, k − (j − i), r − 1) + c(i, j) ),    D(−1, 0, 0) = D(0, 0, 0) = 0,

where item i − 1 is kept in front of a run, so that no two runs touch: what they cost together is the cost of the one
run that they make. Exact for any c; N K runs and what up to K items and K runs can be before each take N K³ additions.
"""

from collections.abc import Mapping
from math import inf

Run = tuple[int, int]
"""[i, j): from the first item that goes up to the first that stays."""
Size = tuple[int, int]
"""How many items go, and in how many runs."""


def contiguous_dp(costs: Mapping[Run, float], length: int, drop: int) -> dict[Size, tuple[float, tuple[Run, ...]]]:
    """For each number up to `drop` that can be dropped of `length` items, in each number of runs, the least cost and
    its runs in order.

    A run that is not in `costs` cannot be dropped.
    """
    # least[j][k, r]: D(j, k, r) and the runs that it is made of.
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
