"""Which weights are kept: exact counts whatever the scores, over a whole matrix, in every row, or N of every M.

Public code compares scores with a threshold, which takes too many away where scores are equal. Here of equal scores
the first are kept, so that a mask of k weights has k. A score of −∞ marks a weight that is zero already: it is never
kept, and counts.
"""

from math import inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def zeros_for(sparsity: float, size: int) -> int:
    """round(sparsity · size): how many of `size` weights are zero; torch.nn.utils.prune rounds in the same way."""
    return round(sparsity * size)


def marked(scores: Float[Tensor, "out in"], support: Bool[Tensor, "out in"] | None) -> Float[Tensor, "out in"]:
    """The scores with −∞ wherever `support` says that the weight is zero already."""
    return scores if support is None else scores.masked_fill(~support, -inf)


def keep_in_matrix(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """The mask that leaves round(sparsity · out · in) zeros, or those that are there where these are more."""
    kept = scores.numel() - zeros_for(sparsity, scores.numel())
    return largest(scores.reshape(1, -1), torch.tensor([kept], device=scores.device)).view(scores.shape)


def keep_in_rows(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """The mask that leaves round(sparsity · in) zeros in every row, or those that are there where these are more."""
    rows, columns = scores.shape
    kept = columns - zeros_for(sparsity, columns)
    return largest(scores, torch.full((rows,), kept, device=scores.device))


def keep_in_groups(scores: Float[Tensor, "out in"], pattern: tuple[int, int]) -> Bool[Tensor, "out in"]:
    """The N largest of every M consecutive inputs, for `pattern` (N, M); `in` is a multiple of M.

    A group in which fewer than N are left keeps these.
    """
    kept, of = pattern
    groups = scores.reshape(-1, of)
    return largest(groups, torch.full((len(groups),), kept, device=scores.device)).view(scores.shape)


def largest(scores: Float[Tensor, "rows n"], kept: Int[Tensor, " rows"]) -> Bool[Tensor, "rows n"]:
    """In each row the `kept` largest, of equal ones the first; none that is −∞."""
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    last = _last_kept(scores, kept)
    above, equal = scores > last, scores == last
    missing = kept - above.sum(1)
    if (equal.sum(1) > missing).any():
        equal &= equal.cumsum(1, dtype=torch.int32) <= missing[:, None]
    return (above | equal) & (scores > -inf)


def _last_kept(scores: Float[Tensor, "rows n"], kept: Int[Tensor, " rows"]) -> Float[Tensor, "rows 1"]:
    """The smallest score that is kept in each row; +∞ where none is."""
    n = scores.shape[1]
    if len(scores) == 1:
        # Selecting one of many is ten times faster than sorting all.
        k = n - int(kept) + 1
        return scores.kthvalue(k, keepdim=True).values if k <= n else scores.new_full((1, 1), inf)
    falling = scores.sort(dim=1, descending=True).values
    last = falling.gather(1, (kept - 1).clamp(min=0)[:, None])
    return last.masked_fill((kept == 0)[:, None], inf)
