"""Masks from scores, with exact counts: over a whole matrix, in every row, N of every M, or over many matrices.

A threshold on scores removes too many weights where scores are equal. Here the first of several equal scores are kept,
so the number of kept weights is exact. A score of −∞ marks a weight that is zero already: it is never kept, and counts
as pruned.

`count_pruned` finds one threshold over many matrices that are never in memory together, by radix selection (D. E.
Knuth, "The Art of Computer Programming", vol. 3, 5.2.5). A float32 becomes an integer of the same order. One pass
counts the upper 16 bits, a second one the lower 16 bits of the scores that share the upper half of the threshold. That
is exact, and takes one chunk of scores and one histogram for each matrix. If n_ℓ(τ) scores of matrix ℓ are at most τ,
it loses n_ℓ(τ) weights, clipped to [floor, cap]. The sum still rises with τ, and the threshold is the least τ at which
it reaches k. Scores equal to τ are then pruned one by one until the sum is k.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def zero_count(sparsity: float, size: int) -> int:
    """Number of zeros among `size` weights at a sparsity: round(sparsity · size), as in torch.nn.utils.prune.

    Example:
        >>> zero_count(0.5, 9)
        4
    """
    return round(sparsity * size)


def exclude_pruned(scores: Float[Tensor, "out in"], support: Bool[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
    """The scores, with −∞ where a weight is zero already.

    Args:
        scores: the score of each weight.
        support: False at weights that are zero; None if nothing was pruned.

    Example:
        >>> exclude_pruned(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]))
        tensor([[-inf, 2.]])
    """
    return scores if support is None else scores.masked_fill(~support, -inf)


def keep_in_matrix(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """The mask of the highest scores with round(sparsity · out · in) zeros, or more if more weights are zero already.

    Args:
        scores: the score of each weight.
        sparsity: the fraction of zeros.

    Returns:
        True at kept weights.

    Example:
        >>> keep_in_matrix(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    kept = scores.numel() - zero_count(sparsity, scores.numel())
    return keep_largest(scores.reshape(1, -1), torch.tensor([kept], device=scores.device)).view(scores.shape)


def keep_in_rows(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """The mask of the highest scores of every row that leaves round(sparsity · in) zeros in each.

    Args:
        scores: the score of each weight.
        sparsity: the fraction of zeros.

    Returns:
        True at kept weights.

    Example:
        >>> keep_in_rows(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    rows, columns = scores.shape
    kept = columns - zero_count(sparsity, columns)
    return keep_largest(scores, torch.full((rows,), kept, device=scores.device))


def keep_in_groups(scores: Float[Tensor, "out in"], pattern: tuple[int, int]) -> Bool[Tensor, "out in"]:
    """The mask of the N highest scores of every M consecutive inputs; a group with fewer nonzero weights keeps these.

    Args:
        scores: the score of each weight; the number of inputs is a multiple of M.
        pattern: (N, M).

    Returns:
        True at kept weights.

    Example:
        >>> keep_in_groups(torch.tensor([[4.0, 3.0, 1.0, 2.0]]), (1, 2))
        tensor([[ True, False, False,  True]])
    """
    kept, size = pattern
    groups = scores.reshape(-1, size)
    return keep_largest(groups, torch.full((len(groups),), kept, device=scores.device)).view(scores.shape)


def keep_largest(scores: Float[Tensor, "rows n"], kept: Int[Tensor, " rows"]) -> Bool[Tensor, "rows n"]:
    """The mask of the highest scores of each row. The first of equal scores are kept; a score of −∞ never is.

    Args:
        scores: rows of scores.
        kept: how many to keep in each row.

    Returns:
        True at kept scores.

    Example:
        >>> keep_largest(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([1]))
        tensor([[ True, False, False]])
    """
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    last = _last_kept(scores, kept)
    above, equal = scores > last, scores == last
    missing = kept - above.sum(1)
    if (equal.sum(1) > missing).any():
        equal &= equal.cumsum(1, dtype=torch.int32) <= missing[:, None]
    return (above | equal) & (scores > -inf)


def _last_kept(scores: Float[Tensor, "rows n"], kept: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1"]:
    """The lowest score that is kept in each row; +∞ if none is kept."""
    n = scores.shape[1]
    if len(scores) == 1:
        # Selecting one value is ten times faster than sorting all.
        k = n - int(kept) + 1
        return scores.kthvalue(k, keepdim=True).values if k <= n else scores.new_full((1, 1), inf)
    descending_scores = scores.sort(dim=1, descending=True).values
    last = descending_scores.gather(1, (kept - 1).clamp(min=0)[:, None])
    return last.masked_fill((kept == 0)[:, None], inf)


CHUNK = 2**18
"""Scores that are counted at once."""
DIGIT = 2**16


@dataclass(frozen=True)
class ScoredMatrix:
    """The scores of one matrix, and how many of its weights may be pruned.

    Args:
        scores: returns the scores piece by piece, in any shape, the same at every call; NaN counts as the highest.
        cap: weights that are pruned at most.
        floor: weights that are pruned whatever their score, even if that is more than the cap.

    Example:
        >>> ScoredMatrix(lambda: [torch.rand(10)], cap=5, floor=1).clip(8)
        5
    """

    scores: Callable[[], Iterable[Float[Tensor, "..."]]]
    cap: int
    floor: int = 0

    def clip(self, count: int) -> int:
        """`count`, clipped to [floor, cap]."""
        return max(min(count, self.cap), self.floor)


def count_pruned(matrices: Sequence[ScoredMatrix], k: int) -> list[int]:
    """Number of weights that each matrix loses if the k lowest scores of all matrices are pruned.

    Args:
        matrices: the matrices; of scores equal to the threshold, those of earlier matrices are pruned first.
        k: weights to prune in all.

    Raises:
        ValueError: k is less than the sum of the floors, or more than the caps allow.

    Example:
        >>> first, second = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 3.0])
        >>> count_pruned([ScoredMatrix(lambda: [first], cap=2), ScoredMatrix(lambda: [second], cap=2)], k=3)
        [1, 2]
    """
    # `below` counts the scores below the threshold, `equal` those whose digits so far equal the threshold's.
    below, equal, prefix = [0] * len(matrices), [True] * len(matrices), None
    for _ in range(2):
        # A matrix is not counted if it has no equal scores, or if the scores below reach its cap.
        counts = [
            _count_digits(matrix, prefix) if undecided and count < matrix.cap else torch.zeros(DIGIT, dtype=torch.long)
            for matrix, count, undecided in zip(matrices, below, equal, strict=True)
        ]
        prefix = _first_reaching(matrices, below, counts, k)
        below = [count + int(found[:prefix].sum()) for count, found in zip(below, counts, strict=True)]
        equal = [int(found[prefix]) for found in counts]
    return _distribute(matrices, below, equal, k)


def ordered_integers(scores: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """int32 numbers in the order of the float32 scores; −0 equals 0, and NaN is the highest.

    Example:
        >>> bool(ordered_integers(torch.tensor([-1.0, 2.0])).diff() > 0)
        True
    """
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.masked_fill_(scores.isnan(), 0x7FFFFFFF)


def _count_digits(matrix: ScoredMatrix, prefix: int | None) -> Int[Tensor, " digits"]:
    """Histogram of the upper 16 bits of the scores; with a `prefix`, of the lower 16 bits after these upper ones."""
    total = torch.zeros(DIGIT, dtype=torch.long)
    for piece in matrix.scores():
        for chunk in piece.detach().flatten().split(CHUNK):
            integers = ordered_integers(chunk.float())
            upper = (integers >> 16) + DIGIT // 2
            digits = upper if prefix is None else integers[upper == prefix] & (DIGIT - 1)
            total += torch.bincount(digits, minlength=DIGIT).cpu()
    return total


def _first_reaching(
    matrices: Sequence[ScoredMatrix], below: Sequence[int], counts: Sequence[Int[Tensor, " digits"]], k: int
) -> int:
    """The first digit at which at least `k` weights are pruned; `below` are counted before digit 0."""
    pruned = torch.zeros(DIGIT, dtype=torch.long)
    for matrix, start, found in zip(matrices, below, counts, strict=True):
        pruned += (start + found.cumsum(0)).clamp_(max=matrix.cap).clamp_(min=matrix.floor)
    if not sum(matrix.floor for matrix in matrices) <= k <= pruned[-1]:
        raise ValueError(f"{k} is not between the floors and the caps, which allow {int(pruned[-1])}")
    return int((pruned >= k).int().argmax())


def _distribute(matrices: Sequence[ScoredMatrix], below: Sequence[int], equal: Sequence[int], k: int) -> list[int]:
    """Weights that each matrix loses: all `below` the threshold, then those `equal` to it until there are k."""
    lost = [matrix.clip(count) for matrix, count in zip(matrices, below, strict=True)]
    missing = k - sum(lost)
    for index, matrix in enumerate(matrices):
        more = min(matrix.clip(below[index] + equal[index]) - lost[index], missing)
        lost[index] += more
        missing -= more
    return lost
