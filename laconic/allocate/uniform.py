"""Every matrix keeps the same fraction of its bytes, as nearly as the offered sizes allow.

Sizes come in steps, such as ranks in multiples of 8, rows, or single weights. Each matrix first takes the largest size
within its share. If more than 1 % of the budget is then unspent, sizes are increased step by step. Each step goes to
the matrix that is furthest below its share relative to its size (among equals, the first in forward order); a matrix
that has reached its share gets no more. If more than 1 % is still unspent, this is repeated with the smallest steps
that the method has.
"""

import heapq
from collections.abc import Mapping

import torch

from laconic.allocate.plan import Plan
from laconic.allocate.spectrum import check_overhead, too_small_error
from laconic.methods import Method

Shapes = Mapping[str, tuple[int, int]]

CLOSE = 0.01
"""Fraction of the budget that may stay unspent before finer steps are used."""
SMALLEST = 1e-9
"""A value of `keep` below every size, which selects the smallest one."""


def allocate_uniform(
    method: Method,
    shapes: Shapes,
    keep: float,
    dtype: torch.dtype = torch.float32,
    stored: Mapping[str, float] | None = None,
    counts: Mapping[str, int] | None = None,
) -> Plan:
    """Set a method to the same fraction of bytes for each matrix.

    Together the matrices take at most `keep` of their bytes, and at least 99 % of that if the method's sizes are fine
    enough. Quantization has few sizes, so all matrices of one shape get the same size.

    Args:
        method: the method, without a size.
        shapes: (out, in) of each matrix, by name.
        keep: fraction of the bytes to keep; with 1 or more, no matrix is compressed.
        dtype: dtype of the uncompressed model.
        stored: fraction of a matrix that counts as its own, by name; 1 if missing, ½ for each of two tied matrices.
        counts: number of matrices of one size that a name stands for, such as the experts of a stack; 1 if missing.

    Returns:
        The method with a size for each matrix; None for each if `keep` is 1 or more.

    Raises:
        UserError: `keep` is too small for the overhead of the method or for its smallest sizes.

    Example:
        >>> from laconic.methods import Svd
        >>> allocate_uniform(Svd(multiple=1), {"wide": (8, 24), "square": (8, 8)}, keep=0.5)
        {'wide': Svd(rank=3, rank_ratio=None, multiple=1), 'square': Svd(rank=2, rank_ratio=None, multiple=1)}
    """
    parts = {name: (stored or {}).get(name, 1.0) for name in shapes}
    check_overhead(method, keep, dtype, min(parts.values(), default=1.0))
    if keep >= 1:
        return dict.fromkeys(shapes)
    sizes = _UniformSizes(method, shapes, {name: keep * part for name, part in parts.items()}, dtype, counts or {})
    sizes.reduce_to_budget()
    if sizes.left < -ROUNDING:
        raise too_small_error(keep, keep * sizes.smallest() / sizes.budget)
    for finest in (False, True):
        if sizes.left > CLOSE * sizes.budget:
            sizes.spend(finest=finest)
    return {**sizes.sized}


ROUNDING = 1e-3
"""Tolerance in bytes, as a budget is a product of floating-point fractions."""


class _UniformSizes:
    """Finds sizes within one budget.

    Args:
        method: the method, without a size.
        shapes: (out, in) of each matrix, by name.
        shares: fraction of its dense bytes that each matrix may take, by name.
        dtype: dtype of the uncompressed model.
        counts: number of matrices that each name stands for; 1 if missing.
    """

    def __init__(
        self,
        method: Method,
        shapes: Shapes,
        shares: Mapping[str, float],
        dtype: torch.dtype,
        counts: Mapping[str, int],
    ) -> None:
        self._method = method
        self._shapes = shapes
        self._shares = shares
        self._dtype = dtype
        self._sizes: dict[tuple[Method, tuple[int, int]], int] = {}
        self._counts = counts
        self._dense = {
            name: counts.get(name, 1) * rows * columns * dtype.itemsize for name, (rows, columns) in shapes.items()
        }
        self.budget = sum(share * self._dense[name] for name, share in shares.items())
        self.sized = {name: method.with_keep(share, shapes[name], dtype) for name, share in shares.items()}

    @property
    def left(self) -> float:
        return self.budget - sum(self._nbytes(name) for name in self.sized)

    def smallest(self) -> int:
        """Bytes of all matrices at their smallest sizes."""
        return sum(
            self._size_of(self._method.with_keep(SMALLEST, shape, self._dtype), name)
            for name, shape in self._shapes.items()
        )

    def reduce_to_budget(self) -> None:
        """If the smallest sizes of some matrices exceed their shares, reduce the sizes of the others."""
        excess = -self.left
        others = [name for name in self.sized if self._below(name) >= 0]
        if excess <= ROUNDING or not others:
            return
        reduction = excess / sum(self._dense[name] for name in others)
        for name in others:
            share = max(self._shares[name] - reduction, SMALLEST)
            self.sized[name] = self._method.with_keep(share, self._shapes[name], self._dtype)

    def spend(self, *, finest: bool) -> None:
        """Increase the sizes of matrices below their shares step by step, until no step fits into the budget."""
        waiting = [(-self._below(name), order, name) for order, name in enumerate(self.sized)]
        heapq.heapify(waiting)
        left = self.left
        while waiting:
            above, order, name = heapq.heappop(waiting)
            larger = self.sized[name].next_larger(self._shapes[name], finest=finest) if above < 0 else None
            if larger is None:
                continue
            extra = self._size_of(larger, name) - self._nbytes(name)
            if 0 < extra <= left:
                self.sized[name] = larger
                left -= extra
                heapq.heappush(waiting, (-self._below(name), order, name))

    def _below(self, name: str) -> float:
        """Share of a matrix minus its present fraction of bytes, rounded so that equal values compare equal."""
        return round(self._shares[name] - self._nbytes(name) / self._dense[name], 12)

    def _nbytes(self, name: str) -> int:
        return self._size_of(self.sized[name], name)

    def _size_of(self, method: Method, name: str) -> int:
        key = method, self._shapes[name]
        if key not in self._sizes:
            self._sizes[key] = method.meta_format(self._shapes[name]).to(self._dtype).nbytes()
        return self._counts.get(name, 1) * self._sizes[key]
