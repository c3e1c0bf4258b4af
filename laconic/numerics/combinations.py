"""N:M patterns as one number for each group of M weights.

Which N of M weights are kept is stored as the rank of the combination among all C(M, N) (the combinatorial number
system: Knuth, The Art of Computer Programming 4A, 7.2.1.3, Theorem L): the places c₁ < c₂ < … < c_N have the rank
Σᵢ C(cᵢ, i), which counts from 0 to C(M, N) − 1 without a gap. A group of 2:4 takes 3 bits, where its mask takes 4.
"""

import math

import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from laconic.numerics.packing import MAX_BITS

WIDEST_TABLE = 16
"""Groups of up to this many weights are looked up in a table of all masks."""


def index_bits(pattern: tuple[int, int]) -> int:
    """Bits of the rank of one group of a pattern (N, M): ⌈log₂ C(M, N)⌉.

    Example:
        >>> index_bits((2, 4))
        3
    """
    kept, size = pattern
    return (math.comb(size, kept) - 1).bit_length()


def follows_pattern(mask: Bool[Tensor, "out in"], pattern: tuple[int, int]) -> bool:
    """Whether a mask keeps exactly N of every M consecutive inputs, with ranks that can be packed.

    Args:
        mask: True at kept weights.
        pattern: (N, M).

    Example:
        >>> follows_pattern(torch.tensor([[True, False, False, True]]), (1, 2))
        True
    """
    kept, size = pattern
    if not 0 < kept < size or mask.shape[1] % size or index_bits(pattern) > MAX_BITS:
        return False
    return bool((mask.view(-1, size).sum(1) == kept).all())


def rank_combinations(groups: Bool[Tensor, "n M"]) -> Int64[Tensor, " n"]:
    """The rank of each group's combination.

    Args:
        groups: True where a weight is kept; all groups keep equally many.

    Example:
        >>> rank_combinations(torch.tensor([[True, True, False], [False, True, True]]))
        tensor([0, 2])
    """
    size = groups.shape[1]
    if size <= WIDEST_TABLE and len(groups) > 2**size:
        # Rank all masks once, then look each group up.
        places = torch.arange(size, device=groups.device)
        all_masks = (torch.arange(2**size, device=groups.device)[:, None] >> places) & 1 == 1
        codes = torch.zeros(len(groups), dtype=torch.int32, device=groups.device)
        for place in range(size):
            codes |= groups[:, place].int() << place
        return rank_combinations(all_masks)[codes]
    table = _binomials(size, size, groups.device)
    result = torch.zeros(len(groups), dtype=torch.int64, device=groups.device)
    # Kept places so far, this one included.
    count = torch.zeros_like(result)
    for place in range(size):
        count += groups[:, place]
        result += torch.where(groups[:, place], table[place, count], 0)
    return result


def unrank_combinations(numbers: Integer[Tensor, " n"], pattern: tuple[int, int]) -> Bool[Tensor, "n M"]:
    """The groups with these ranks.

    Args:
        numbers: ranks.
        pattern: (N, M).

    Returns:
        True at kept weights.

    Example:
        >>> unrank_combinations(torch.tensor([2]), (2, 3))
        tensor([[False,  True,  True]])
    """
    kept, size = pattern
    if len(numbers) > math.comb(size, kept):
        return unrank_combinations(torch.arange(math.comb(size, kept), device=numbers.device), pattern)[numbers.int()]
    table = _binomials(size, kept, numbers.device)
    remainder, count = numbers.long(), torch.full_like(numbers, kept, dtype=torch.int64)
    groups = torch.zeros(len(numbers), size, dtype=torch.bool, device=numbers.device)
    for place in reversed(range(size)):
        binomial = table[place, count]
        groups[:, place] = (remainder >= binomial) & (count > 0)
        remainder = torch.where(groups[:, place], remainder - binomial, remainder)
        count -= groups[:, place].long()
    return groups


def _binomials(rows: int, columns: int, device: torch.device) -> Int64[Tensor, "rows columns_1"]:
    """C(row, column), or 2^MAX_BITS where it is larger than any rank that can be packed."""
    # The largest binomials of a wide row exceed 64 bits; no rank that can be packed needs them.
    table = [[min(math.comb(row, column), 2**MAX_BITS) for column in range(columns + 1)] for row in range(rows)]
    return torch.tensor(table, device=device)
