"""Which of a row of items to drop, where dropping neighbours together costs what it costs, and runs apart add up.

Let c(i, j) be the cost of dropping the run [i, j) alone, and D(j, k) the least of dropping k of the first j items. Then

    D(j, k) = min( D(j − 1, k),  min_i D(i − 1, k − (j − i)) + c(i, j) ),        D(−1, 0) = D(0, 0) = 0,

where item i − 1 is kept in front of a run, so that no two runs touch: what they cost together is the cost of the one
run that they make. Exact for any c; N runs ends, K items and runs of up to K take N K² additions.
"""

from collections.abc import Mapping
from math import inf

Run = tuple[int, int]
"""[i, j): from the first item that goes up to the first that stays."""


def best_runs(costs: Mapping[Run, float], length: int, drop: int) -> dict[int, tuple[float, tuple[Run, ...]]]:
    """For each number up to `drop` that can be dropped of `length` items, the least cost and its runs in order.

    A run that is not in `costs` cannot be dropped.
    """
    # least[j][k]: D(j, k) and the runs that it is made of.
    least: list[dict[int, tuple[float, tuple[Run, ...]]]] = [{0: (0.0, ())}]
    for stop in range(1, length + 1):
        here = dict(least[stop - 1])
        for start in range(stop):
            cost = costs.get((start, stop), inf)
            if cost == inf:
                continue
            before = least[max(start - 1, 0)] if start else {0: (0.0, ())}
            for dropped, (paid, runs) in before.items():
                whole = dropped + stop - start
                if whole <= drop and paid + cost < here.get(whole, (inf, ()))[0]:
                    here[whole] = (paid + cost, (*runs, (start, stop)))
        least.append(here)
    return least[length]
