"""Which N of every M weights are kept, as one number per group: its place among the C(M, N) combinations.

The combinatorial number system (Knuth, The Art of Computer Programming 4A, 7.2.1.3, Theorem L): the combination of
places c₁ < c₂ < … < c_N has the number Σᵢ C(cᵢ, i), which counts from 0 to C(M, N) − 1 without a gap. A group
of 2:4 then takes 3 bits, where its mask takes 4.
"""

import math

import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from laconic.numerics.packing import MOST

WIDEST_TABLE = 16
"""Groups up to this size are looked up in a table of all of them."""


def index_bits(pattern: tuple[int, int]) -> int:
    """Bits of the number of one group: ⌈log₂ C(M, N)⌉."""
    kept, of = pattern
    return (math.comb(of, kept) - 1).bit_length()


def follows(mask: Bool[Tensor, "out in"], pattern: tuple[int, int]) -> bool:
    """Whether `mask` keeps exactly N of every M consecutive inputs, in numbers that can be packed."""
    kept, of = pattern
    if not 0 < kept < of or mask.shape[1] % of or index_bits(pattern) > MOST:
        return False
    return bool((mask.view(-1, of).sum(1) == kept).all())


def ranks(groups: Bool[Tensor, "n M"]) -> Int64[Tensor, " n"]:
    """The number of each group; all have as many places kept."""
    size = groups.shape[1]
    if size <= WIDEST_TABLE and len(groups) > 2**size:
        # Every group there is once, and then looked up.
        places = torch.arange(size, device=groups.device)
        every = (torch.arange(2**size, device=groups.device)[:, None] >> places) & 1 == 1
        codes = torch.zeros(len(groups), dtype=torch.int32, device=groups.device)
        for place in range(size):
            codes |= groups[:, place].int() << place
        return ranks(every)[codes]
    table = _binomials(size, size, groups.device)
    result = torch.zeros(len(groups), dtype=torch.int64, device=groups.device)
    # How many of the places so far are kept, this one included.
    count = torch.zeros_like(result)
    for place in range(size):
        count += groups[:, place]
        result += torch.where(groups[:, place], table[place, count], 0)
    return result


def unranked(numbers: Integer[Tensor, " n"], pattern: tuple[int, int]) -> Bool[Tensor, "n M"]:
    """The groups that have these numbers."""
    kept, of = pattern
    if len(numbers) > math.comb(of, kept):
        return unranked(torch.arange(math.comb(of, kept), device=numbers.device), pattern)[numbers.int()]
    table = _binomials(of, kept, numbers.device)
    left, count = numbers.long(), torch.full_like(numbers, kept, dtype=torch.int64)
    groups = torch.zeros(len(numbers), of, dtype=torch.bool, device=numbers.device)
    for place in reversed(range(of)):
        worth = table[place, count]
        groups[:, place] = (left >= worth) & (count > 0)
        left = torch.where(groups[:, place], left - worth, left)
        count -= groups[:, place].long()
    return groups


def _binomials(rows: int, columns: int, device: torch.device) -> Int64[Tensor, "rows columns_1"]:
    """C(row, column), or 2^MOST, which is above every number that can be packed, where that is less."""
    # The middle of a wide row does not fit into a word, and the numbers that do are not made of it.
    table = [[min(math.comb(row, column), 2**MOST) for column in range(columns + 1)] for row in range(rows)]
    return torch.tensor(table, device=device)
