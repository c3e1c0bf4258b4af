"""Weighted k-means in one dimension: the k values per row that minimise Σ_j h_j (w_j − nearest value)².

The weights nearest to one value are a stretch of the sorted row, so sums over them are differences of running sums, and
one iteration takes k binary searches per row, however long the row is. The best of several starts is improved by S.
Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28, 1982, and then by moving a value from where it
helps least to where it helps most.

K-means considers the weights of a row one by one. `refit_codebook` then fits the values to the outputs of the layer, in
which inputs couple the weights. With the codes fixed, a row of Ŵ is T c, T the k values and c (k, n) the one-hot code
of each weight, and ½ (w − T c) C (w − T c)^T is least at T (c C c^T) = w C c^T. Rows that share a table add up their
equations, weighted by F.

The start values have a density ∝ f^p, where f is the density of the weighted numbers. p = 1/3 is best for many values
(P. Panter, W. Dite, Proc. IRE 39, 1951), p = 0 spaces them evenly, and p = 2/3 puts them where most of the weight is.

Notation: W (rows, n); h ≥ 0, (rows, n); V (rows, k) the values, ascending; C (n, n) moment of the inputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.functional import pad

ITERATIONS = 60
POWERS = (1 / 3, 0.0, 2 / 3)
FEW = 32
"""With at most this many values, all starts are tried and improved by moves; more values are near the best anyway."""
MOVES = 20
SETTLING = 10
"""Iterations after each move."""
BLOCK = 2**21
"""Numbers that are processed at a time, which bounds the memory, unless one table serves the whole matrix."""


class _Rows(NamedTuple):
    """Sorted rows v (rows, n), and running sums of h, h v and h v² with a leading zero, (rows, n + 1)."""

    v: Tensor
    h: Tensor
    sums: tuple[Tensor, Tensor, Tensor]

    def take(self, which: Tensor) -> "_Rows":
        """A subset of the rows."""
        mass, moment, square = self.sums
        return _Rows(self.v[which], self.h[which], (mass[which], moment[which], square[which]))


def kmeans(
    W: Float[Tensor, "rows n"],
    h: Float[Tensor, "rows n"],
    k: int,
    starts: Sequence[Float[Tensor, "rows k"]] = (),
) -> Float[Tensor, "rows k"]:
    """The k values of every row, ascending, in fp64; never worse than any of `starts`.

    Args:
        W: rows of numbers.
        h: weight of each number; numbers of weight zero do not count.
        k: how many values; a row with fewer different numbers repeats values.
        starts: values to start from, beside the standard starts.

    Example:
        >>> W = torch.tensor([[0.0, 1.0, 9.0, 11.0]])
        >>> kmeans(W, torch.ones_like(W), k=2)
        tensor([[ 0.5000, 10.0000]], dtype=torch.float64)
    """
    if k >= W.shape[1]:
        # Every number gets a value of its own.
        return pad(W.double().sort(dim=1).values, (0, k - W.shape[1]), mode="replicate")
    parts = []
    for rows in torch.arange(len(W), device=W.device).split(max(1, BLOCK // W.shape[1])):
        sorted_rows = _sort(W[rows], h[rows])
        first, *others = (_start_values(sorted_rows, k, power) for power in POWERS[: None if k <= FEW else 1])
        best, lowest = _improve(sorted_rows, first)
        for start in (*others, *(start[rows].double().sort(dim=1).values for start in starts)):
            best, lowest = _take_better(best, lowest, *_improve(sorted_rows, start))
        parts.append(best)
    return torch.cat(parts)


def assign_codes(W: Float[Tensor, "rows n"], V: Float[Tensor, "rows k"]) -> Integer[Tensor, "rows n"]:
    """The index of the nearest value of its row for each number, uint8.

    Args:
        W: rows of numbers.
        V: the values of each row, ascending.

    Example:
        >>> assign_codes(torch.tensor([[0.0, 9.0]]), torch.tensor([[0.5, 10.0]]))
        tensor([[0, 1]], dtype=torch.uint8)
    """
    middles = ((V[:, 1:] + V[:, :-1]) / 2).contiguous()
    parts = []
    for rows in torch.arange(len(W), device=W.device).split(max(1, BLOCK // W.shape[1])):
        where = torch.searchsorted(middles[rows], W[rows].to(V.dtype).contiguous(), out_int32=True)
        parts.append(where.to(torch.uint8))
    return torch.cat(parts)


def _sort(W: Tensor, h: Tensor) -> _Rows:
    v, order = W.double().sort(dim=1)
    h = h.double().gather(1, order)
    # Weights of order 1, so that rows with tiny weights do not underflow.
    h = h / h.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    sums = [pad(term.cumsum(1), (1, 0)) for term in (h, h * v, h * v * v)]
    return _Rows(v.contiguous(), h, (sums[0], sums[1], sums[2]))


def _start_values(rows: _Rows, k: int, power: float) -> Float[Tensor, "rows k"]:
    """Values of density ∝ f^power."""
    v, h = rows.v, rows.h
    gaps = torch.gradient(v, dim=1)[0] if v.shape[1] > 1 else torch.ones_like(v)
    # The density f of a number is its weight over its distance to the neighbours.
    mass = (h.pow(power) * gaps.pow(1 - power)).cumsum(1)
    quantiles = (torch.arange(k, dtype=v.dtype, device=v.device) + 0.5) / k
    places = torch.searchsorted(mass, mass[:, -1:] * quantiles)
    return v.gather(1, places.clamp(max=v.shape[1] - 1))


def _edges(rows: _Rows, V: Tensor) -> Integer[Tensor, "rows edges"]:
    """Indices in the sorted row at which the stretch of each value begins, and the end of the last one."""
    middles = ((V[:, 1:] + V[:, :-1]) / 2).contiguous()
    inner = torch.searchsorted(rows.v, middles)
    return pad(pad(inner, (1, 0)), (0, 1), value=rows.v.shape[1])


def _lloyd(rows: _Rows, V: Tensor, iterations: int) -> Float[Tensor, "rows k"]:
    for _ in range(iterations):
        edges = _edges(rows, V)
        mass, moment = (total.gather(1, edges).diff(dim=1) for total in rows.sums[:2])
        # The means are ascending except for rounding, and the value of an empty stretch stays between its neighbours.
        new = torch.where(mass > 0, moment / mass, V).sort(dim=1).values
        if torch.equal(new, V):
            break
        V = new
    return V


def _error(rows: _Rows, V: Tensor) -> Float[Tensor, " rows"]:
    mass, moment, square = (total.gather(1, _edges(rows, V)).diff(dim=1) for total in rows.sums)
    return (square - 2 * V * moment + V * V * mass).sum(1)


def _take_better(V: Tensor, lowest: Tensor, other: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row the values with the lower error."""
    wins = error < lowest
    return torch.where(wins[:, None], other, V), torch.where(wins, error, lowest)


def _improve(rows: _Rows, V: Tensor) -> tuple[Float[Tensor, "rows k"], Float[Tensor, " rows"]]:
    """Improve values by Lloyd's iterations, then by moves while they lower an error; also return the errors."""
    V = _lloyd(rows, V, ITERATIONS)
    lowest = _error(rows, V)
    active = torch.arange(len(V), device=V.device)
    for _ in range(MOVES if 3 < V.shape[1] <= FEW else 0):
        subset = rows.take(active)
        other = _lloyd(subset, _move_value(subset, V[active]), SETTLING)
        error = _error(subset, other)
        lower = error < lowest[active]
        active = active[lower]
        if len(active) == 0:
            break
        V[active], lowest[active] = other[lower], error[lower]
    V = _lloyd(rows, V, ITERATIONS)
    return V, _error(rows, V)


def _move_value(rows: _Rows, V: Tensor) -> Float[Tensor, "rows k"]:
    """Split the stretch whose division gains most, and join the two neighbouring stretches whose union costs least."""
    n, k = rows.v.shape[1], V.shape[1]
    if n < 2:
        return V
    edges = _edges(rows, V)
    mass, moment = (total.gather(1, edges).diff(dim=1) for total in rows.sums[:2])
    value = _energy(mass, moment)
    # Every place at which a stretch can be divided.
    places = torch.arange(1, n, device=V.device).expand(len(V), -1).contiguous()
    owner = torch.searchsorted(edges[:, 1:-1].contiguous(), places, right=True)
    left = [total[:, 1:-1] - total.gather(1, edges.gather(1, owner)) for total in rows.sums[:2]]
    right = [whole.gather(1, owner) - part for whole, part in zip((mass, moment), left, strict=True)]
    place = (_energy(*left) + _energy(*right) - value.gather(1, owner)).argmax(1, keepdim=True)
    split = owner.gather(1, place)
    joined = _energy(mass[:, 1:] + mass[:, :-1], moment[:, 1:] + moment[:, :-1])
    pairs = torch.arange(k - 1, device=V.device)
    loss = value[:, 1:] + value[:, :-1] - joined
    lost = loss.masked_fill((pairs == split) | (pairs + 1 == split), torch.inf).argmin(1, keepdim=True)
    both = moment.gather(1, lost) + moment.gather(1, lost + 1), mass.gather(1, lost) + mass.gather(1, lost + 1)
    old = V.gather(1, split)
    V = V.scatter(1, lost, _mean(*both, V.gather(1, lost)))
    V = V.scatter(1, lost + 1, _mean(left[1].gather(1, place), left[0].gather(1, place), old))
    V = V.scatter(1, split, _mean(right[1].gather(1, place), right[0].gather(1, place), old))
    return V.sort(dim=1).values


def _energy(mass: Tensor, moment: Tensor) -> Tensor:
    """The reduction of Σ h v² by a value at the mean."""
    return torch.where(mass > 0, moment.square() / mass, 0)


def _mean(moment: Tensor, mass: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(mass > 0, moment / mass, otherwise)


RIDGE = 1e-8
"""Weight of the present values: one that no weight has, or whose inputs were never active, does not change."""


def refit_codebook(
    W: Float[Tensor, "out in"],
    indices: Integer[Tensor, "out in"],
    V: Float[Tensor, "tables k"],
    C: Float[Tensor, "in in"],
    F: Float[Tensor, " out"],
) -> Float[Tensor, "tables k"]:
    """The values of tables that minimise Σ_i F_i e_i C e_i^T for fixed codes, e_i the error of row i. In fp64.

    Args:
        W: the matrix.
        indices: the index of each weight's value; k for a weight that is zero.
        V: the present values, of each row or, as one row, of all rows together.
        C: moment of the inputs.
        F: weight of each row.

    Example:
        >>> refit_codebook(torch.tensor([[1.0, 3.0]]), torch.tensor([[0, 0]]), torch.zeros(1, 1), torch.eye(2).double(),
        ...     torch.ones(1)).round(decimals=4)
        tensor([[2.]], dtype=torch.float64)
    """
    k = V.shape[1]
    WC = W.double() @ C
    systems = zip(F.tolist(), indices.long(), WC, strict=True)
    if len(V) == 1:
        left, right = V.new_zeros(k, k).double(), V.new_zeros(k).double()
        for weight, codes, target in systems:
            left += weight * _moment(codes, C, k)
            right += weight * _total(codes, target, k)
        return _solve_ridge(left, right, V[0].double())[None]
    rows = [
        _solve_ridge(_moment(codes, C, k), _total(codes, target, k), values)
        for (_, codes, target), values in zip(systems, V.double(), strict=True)
    ]
    return torch.stack(rows)


def _solve_ridge(left: Tensor, right: Tensor, V: Tensor) -> Float[Tensor, " k"]:
    level = RIDGE * left.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny / RIDGE)
    left.diagonal().add_(level)
    return torch.linalg.solve(left, right + level * V)


def _moment(indices: Integer[Tensor, " in"], C: Float[Tensor, "in in"], k: int) -> Float[Tensor, "k k"]:
    """c C c^T."""
    rows = C.new_zeros(k + 1, len(C)).index_add_(0, indices, C)
    return C.new_zeros(k + 1, k + 1).index_add_(1, indices, rows)[:k, :k]


def _total(indices: Integer[Tensor, " in"], target: Float[Tensor, " in"], k: int) -> Float[Tensor, " k"]:
    """The sum of the numbers at each index."""
    return target.new_zeros(k + 1).index_add_(0, indices, target)[:k]
