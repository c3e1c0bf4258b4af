"""Every matrix keeps the same fraction of its bytes, as nearly as the sizes on offer allow.

Sizes come in steps: ranks in multiples of 8, rows, single weights. Each matrix first takes the largest size within its
own share. Where all of them together are then more than 1 % below theirs, what is left is spent step by step on the
matrix that is furthest below its share, relative to its size; the first in forward order of such as are equally far.
None that has its share gets more. Where that leaves more than 1 %, the steps become the smallest that there are.
"""

import heapq
from collections.abc import Mapping

import torch

from laconic.allocate.budget import check_overhead, too_small
from laconic.allocate.plan import Plan
from laconic.methods import Method

Shapes = Mapping[str, tuple[int, int]]

CLOSE = 0.01
"""Of `keep`: how far below it the matrices may stay together where finer sizes exist."""
ROUNDING = 1e-9
"""Of a matrix: 0.65 · 192 − 120 is a bit more, or less, than it is."""


def uniform(method: Method, shapes: Shapes, keep: float, dtype: torch.dtype = torch.float32) -> Plan:
    """`method` set to `keep` for each shape (out, in); keeping everything leaves the matrices as they are.

    Together they take at most `keep` of their bytes in `dtype`, and at least 99 % of that where the method's sizes lie
    close enough; bits are few, so a method that rounds gives all matrices of one shape the same.

    Raises:
        UserError: `keep` is no more than the overhead of the method, or than what its smallest sizes take.
    """
    check_overhead(method, keep, dtype)
    if keep >= 1:
        return dict.fromkeys(shapes)
    sized = {name: method.at(keep, shape, dtype) for name, shape in shapes.items()}
    filling = _Filling(sized, shapes, keep, dtype)
    for finest in (False, True):
        if filling.left > CLOSE * filling.budget:
            filling.spend(finest=finest)
    if filling.left < 0:
        raise too_small(keep, (filling.budget - filling.left) / filling.budget * keep)
    return {**filling.sized}


class _Filling:
    """Sizes that grow until the budget is spent; `left` is what is not spent yet, in bytes."""

    def __init__(self, sized: Mapping[str, Method], shapes: Shapes, keep: float, dtype: torch.dtype) -> None:
        self.sized = dict(sized)
        self._shapes = shapes
        self._keep = keep
        self._dtype = dtype
        self._known: dict[tuple[Method, tuple[int, int]], int] = {}
        self._nbytes = {name: self._size_of(method, shapes[name]) for name, method in sized.items()}
        self._dense = {name: rows * columns * dtype.itemsize for name, (rows, columns) in shapes.items()}
        self.budget = keep * sum(self._dense.values())
        self.left = self.budget - sum(self._nbytes.values())

    def spend(self, *, finest: bool) -> None:
        """Let those below their share take steps until none fits into what is left."""
        waiting = [(-self._below(name), order, name) for order, name in enumerate(self.sized)]
        heapq.heapify(waiting)
        while waiting:
            above, order, name = heapq.heappop(waiting)
            larger = self.sized[name].larger(self._shapes[name], finest=finest) if above < -ROUNDING else None
            if larger is None:
                continue
            extra = self._size_of(larger, self._shapes[name]) - self._nbytes[name]
            if 0 < extra <= self.left:
                self.sized[name] = larger
                self._nbytes[name] += extra
                self.left -= extra
                heapq.heappush(waiting, (-self._below(name), order, name))

    def _below(self, name: str) -> float:
        """How much of its bytes a matrix is below its share; equal where only rounding tells two apart."""
        return round(self._keep - self._nbytes[name] / self._dense[name], 12)

    def _size_of(self, method: Method, shape: tuple[int, int]) -> int:
        if (method, shape) not in self._known:
            self._known[method, shape] = method.form(shape).to(self._dtype).nbytes()
        return self._known[method, shape]
