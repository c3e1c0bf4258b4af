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
SMALLEST = 1e-9
"""A `keep` that no size is small enough for."""


def uniform(
    method: Method,
    shapes: Shapes,
    keep: float,
    dtype: torch.dtype = torch.float32,
    stored: Mapping[str, float] | None = None,
) -> Plan:
    """`method` set to `keep` for each shape (out, in); keeping everything leaves the matrices as they are.

    Together they take at most `keep` of their bytes in `dtype`, and at least 99 % of that where the method's sizes lie
    close enough; bits are few, so a method that rounds gives all matrices of one shape the same.

    stored: the part of a matrix that is stored for itself, where that is not all of it: half of each of two that are
            one until they are replaced.

    Raises:
        UserError: `keep` is no more than the overhead of the method, or than what its smallest sizes take.
    """
    parts = {name: (stored or {}).get(name, 1.0) for name in shapes}
    check_overhead(method, keep, dtype, min(parts.values(), default=1.0))
    if keep >= 1:
        return dict.fromkeys(shapes)
    filling = _Filling(method, shapes, {name: keep * part for name, part in parts.items()}, dtype)
    filling.keep_to_the_budget()
    if filling.left < -ROUNDING:
        raise too_small(keep, keep * filling.smallest() / filling.budget)
    for finest in (False, True):
        if filling.left > CLOSE * filling.budget:
            filling.spend(finest=finest)
    return {**filling.sized}


ROUNDING = 1e-3
"""Bytes: a budget is a product of fractions."""


class _Filling:
    """Sizes within one budget; `left` is what is not spent yet, in bytes. shares: the fraction that each may take."""

    def __init__(self, method: Method, shapes: Shapes, shares: Mapping[str, float], dtype: torch.dtype) -> None:
        self._method = method
        self._shapes = shapes
        self._shares = shares
        self._dtype = dtype
        self._known: dict[tuple[Method, tuple[int, int]], int] = {}
        self._dense = {name: rows * columns * dtype.itemsize for name, (rows, columns) in shapes.items()}
        self.budget = sum(share * self._dense[name] for name, share in shares.items())
        self.sized = {name: method.at(share, shapes[name], dtype) for name, share in shares.items()}

    @property
    def left(self) -> float:
        return self.budget - sum(self._nbytes(name) for name in self.sized)

    def smallest(self) -> int:
        """Bytes of the smallest sizes of all."""
        every = (self._size_of(self._method.at(SMALLEST, shape, self._dtype), shape) for shape in self._shapes.values())
        return sum(every)

    def keep_to_the_budget(self) -> None:
        """Where the smallest size of some is more than their share, the others get less."""
        over = -self.left
        others = [name for name in self.sized if self._below(name) >= 0]
        if over <= ROUNDING or not others:
            return
        less = over / sum(self._dense[name] for name in others)
        for name in others:
            share = max(self._shares[name] - less, SMALLEST)
            self.sized[name] = self._method.at(share, self._shapes[name], self._dtype)

    def spend(self, *, finest: bool) -> None:
        """Let those below their share take steps until none fits into what is left."""
        waiting = [(-self._below(name), order, name) for order, name in enumerate(self.sized)]
        heapq.heapify(waiting)
        left = self.left
        while waiting:
            above, order, name = heapq.heappop(waiting)
            larger = self.sized[name].larger(self._shapes[name], finest=finest) if above < 0 else None
            if larger is None:
                continue
            extra = self._size_of(larger, self._shapes[name]) - self._nbytes(name)
            if 0 < extra <= left:
                self.sized[name] = larger
                left -= extra
                heapq.heappush(waiting, (-self._below(name), order, name))

    def _below(self, name: str) -> float:
        """How much of its bytes a matrix is below its share; equal where only rounding tells two apart."""
        return round(self._shares[name] - self._nbytes(name) / self._dense[name], 12)

    def _nbytes(self, name: str) -> int:
        return self._size_of(self.sized[name], self._shapes[name])

    def _size_of(self, method: Method, shape: tuple[int, int]) -> int:
        if (method, shape) not in self._known:
            self._known[method, shape] = method.empty_format(shape).to(self._dtype).nbytes()
        return self._known[method, shape]
