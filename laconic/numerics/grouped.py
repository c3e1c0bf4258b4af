"""Sums over groups of rows: the moments of the tokens that a router sends to each expert of a layer.

A row is a pair of a token and one of its experts; the rows are sorted by expert. The router multiplies the output of
expert e by a weight w, so the squared error of the layer that a change E of the expert's matrix makes is

    Σ_s ‖w_s E x_s‖² = tr(E (Σ_s w_s² x_s x_s^T) E^T)

over the rows s of the expert: every row counts w² in the moments of the inputs. Gradients at the outputs of an expert
have the factor w already.

Each expert that has rows takes one product of its own. On a CPU that is faster than one grouped product of all, because
a moment is symmetric and half of it suffices, and because its sum stays in the cache. The products are computed in the
dtype of the rows, and added in the dtype of the totals.

Notation: X (S, n) inputs and G (S, m) gradients at the outputs, one row for each pair; w (S,) weights; ends (E,) the
cumulative numbers of rows: the rows of expert e are those from ends[e − 1] to ends[e] − 1.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.numerics.gram import add_gram

Ends = Int[Tensor, " experts"]
ADDED_ROWS = 64
"""Rows of a matrix that are added to totals of another dtype at once."""


def expert_rows(ends: Ends) -> Iterator[tuple[int, slice]]:
    """Yield the number of each expert that has rows, and the slice of its rows.

    Example:
        >>> list(expert_rows(torch.tensor([2, 2, 5])))
        [(0, slice(0, 2, None)), (2, slice(2, 5, None))]
    """
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            yield expert, slice(start, end)
        start = end


def add_grams(
    totals: Float[Tensor, "experts n n"], X: Float[Tensor, "rows n"], w: Float[Tensor, " rows"] | None, ends: Ends
) -> None:
    """Add Σ_s w_s² x_s x_s^T of each expert to the upper triangles of `totals`.

    Args:
        totals: the sums, changed in place; their lower triangles have no meaning (`symmetrize`).
        X: the rows.
        w: their weights; None counts every row once.
        ends: the rows of each expert.

    Example:
        >>> totals = torch.zeros(2, 1, 1)
        >>> add_grams(totals, torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 1.0, 0.5]), torch.tensor([2, 3]))
        >>> totals.flatten().tolist()
        [5.0, 2.25]
    """
    for expert, rows in expert_rows(ends):
        # Weighting the rows of one expert at a time keeps them in the cache for the product.
        add_gram(totals[expert], X[rows] if w is None else X[rows] * w[rows, None])


def add_sums(
    totals: Float[Tensor, "experts n"], X: Float[Tensor, "rows n"], w: Float[Tensor, " rows"], ends: Ends
) -> None:
    """Add Σ_s w_s² x_s of each expert to `totals`.

    Args:
        totals: the sums, changed in place.
        X: the rows.
        w: their weights.
        ends: the rows of each expert.

    Example:
        >>> totals = torch.zeros(2, 1)
        >>> add_sums(totals, torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 0.5]), torch.tensor([1, 2]))
        >>> totals.flatten().tolist()
        [1.0, 0.5]
    """
    squares = w.square().to(X.dtype)
    for expert, rows in expert_rows(ends):
        totals[expert] += squares[rows] @ X[rows]


def raise_maxima(totals: Float[Tensor, "experts n"], X: Float[Tensor, "rows n"], ends: Ends) -> None:
    """Raise `totals` to the largest |x_s| of each expert.

    Args:
        totals: the maxima so far, changed in place.
        X: the rows.
        ends: the rows of each expert.

    Example:
        >>> totals = torch.ones(2, 1)
        >>> raise_maxima(totals, torch.tensor([[-3.0], [0.5]]), torch.tensor([1, 2]))
        >>> totals.flatten().tolist()
        [3.0, 1.0]
    """
    for expert, rows in expert_rows(ends):
        largest = X[rows].abs().amax(0).to(totals.dtype)
        totals[expert] = torch.maximum(totals[expert], largest)


def sum_squares(w: Float[Tensor, " rows"], ends: Ends) -> Float[Tensor, " experts"]:
    """Σ_s w_s² of each expert in fp64, the weight of its rows in all.

    Example:
        >>> sum_squares(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 2, 3])).tolist()
        [5.0, 0.0, 9.0]
    """
    cumulative = torch.cat([w.new_zeros(1, dtype=torch.float64), w.double().square().cumsum(0)])
    return cumulative[ends.long()].diff(prepend=cumulative[:1])


def add_squared_products(
    totals: Float[Tensor, "experts m n"],
    G: Float[Tensor, "rows m"],
    X: Float[Tensor, "rows n"],
    sequences: Int[Tensor, " rows"],
    ends: Ends,
) -> None:
    """Add Σ_q (Σ_{s ∈ q} g_s x_s^T)² of each expert to `totals`, element-wise, over the sequences q.

    Args:
        totals: the sums, changed in place.
        G: gradients at the outputs.
        X: the inputs.
        sequences: the sequence that each row belongs to, ascending among the rows of an expert.
        ends: the rows of each expert.

    Example:
        >>> totals = torch.zeros(1, 1, 1)
        >>> rows, sequences = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1])
        >>> add_squared_products(totals, rows, torch.ones(3, 1), sequences, torch.tensor([3]))
        >>> totals.item()
        18.0
    """
    for expert, rows in expert_rows(ends):
        lengths = sequences[rows].unique_consecutive(return_counts=True)[1].tolist()
        squares = sum_squared_products(zip(G[rows].split(lengths), X[rows].split(lengths), strict=True))
        # Rows that are cast to the dtype of the totals stay in the cache until they are added.
        for total, part in zip(totals[expert].split(ADDED_ROWS), squares.split(ADDED_ROWS), strict=True):
            total.add_(part)


def sum_squared_products(
    sequences: Iterable[tuple[Float[Tensor, "_rows m"], Float[Tensor, "_rows n"]]],
) -> Float[Tensor, "m n"]:
    """Σ_q (Σ_{s ∈ q} g_s x_s^T)², element-wise, over at least one sequence q; in the dtype of the rows.

    Args:
        sequences: the rows G and X of each sequence.

    Example:
        >>> ones = torch.ones(2, 1)
        >>> sum_squared_products([(ones, 3 * ones), (ones, ones)]).item()
        40.0
    """
    (G, X), *others = sequences
    squares = (G.T @ X).square_()
    # One product takes the place of the other, so that it stays in the cache.
    product = torch.empty_like(squares)
    for G, X in others:
        torch.mm(G.T, X, out=product)
        squares.addcmul_(product, product)
    return squares
