"""One threshold over many matrices that are never held together: how many weights fall below it in each.

The k-th smallest of all scores, by radix selection (D. E. Knuth, "The Art of Computer Programming", vol. 3, 5.2.5, from
the most significant digit). A float32 becomes an integer of the same order; a first pass counts its upper 16 bits, and
a second one the lower 16 bits of those that share the upper half of the threshold. That is exact, and takes one chunk
of scores and one histogram for each matrix, whatever the number of weights.

With n_ℓ(τ) scores of matrix ℓ that are at most τ, it loses n_ℓ(τ) between a floor and a cap. As Σ_ℓ of that still rises
with τ, the threshold is the least τ at which it reaches k; of the scores equal to τ just as many go as are missing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 2**18
"""Scores that are counted at once."""
DIGIT = 2**16


@dataclass(frozen=True)
class Field:
    """The scores of one matrix, and how many of its weights may go.

    scores: gives them piece by piece, in any shape, the same at every call. What is NaN counts as the largest.
    cap:    weights that it may lose at most.
    floor:  weights that are lost whatever they score, even where that is more than the cap.
    """

    scores: Callable[[], Iterable[Float[Tensor, "..."]]]
    cap: int
    floor: int = 0

    def clipped(self, count: int) -> int:
        """What it loses where the threshold alone would take `count`."""
        return max(min(count, self.cap), self.floor)


def lost_below(fields: Sequence[Field], k: int) -> list[int]:
    """How many weights each of `fields` loses, `k` together, where the smallest scores of all go first.

    Scores equal to the threshold go in the order of `fields`.

    Raises:
        ValueError: `k` is less than the floors, or more than the caps and the scores allow.
    """
    upper = [_counted(field, upper_digit) for field in fields]
    digit = _first_reaching(fields, [0] * len(fields), upper, k)
    below = [int(counts[:digit].sum()) for counts in upper]
    inside = [int(counts[digit]) for counts in upper]
    del upper
    nothing = torch.zeros(DIGIT, dtype=torch.long)
    # Where nothing lies in the bucket, or the cap does before it, a second look is not needed.
    lower = [
        _counted(field, lambda keys: lower_digit(keys, digit)) if more and count < field.cap else nothing
        for field, count, more in zip(fields, below, inside, strict=True)
    ]
    last = _first_reaching(fields, below, lower, k)
    below = [count + int(counts[:last].sum()) for count, counts in zip(below, lower, strict=True)]
    return _handed_out(fields, below, [int(counts[last]) for counts in lower], k)


def keys(scores: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """int32 of the same order as float32; both zeros are one, and NaN is above all."""
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.masked_fill_(scores.isnan(), 0x7FFFFFFF)


def upper_digit(keys: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The upper 16 bits, from 0."""
    return (keys >> 16) + DIGIT // 2


def lower_digit(keys: Int[Tensor, "n"], digit: int) -> Int[Tensor, "m"]:
    """The lower 16 bits of those whose upper ones are `digit`."""
    return keys[upper_digit(keys) == digit] & (DIGIT - 1)


def _counted(field: Field, digit: Callable[[Int[Tensor, "n"]], Int[Tensor, "m"]]) -> Int[Tensor, " digits"]:
    total = torch.zeros(DIGIT, dtype=torch.long)
    for piece in field.scores():
        for chunk in piece.detach().flatten().split(CHUNK):
            total += torch.bincount(digit(keys(chunk.float())), minlength=DIGIT).cpu()
    return total


def _first_reaching(
    fields: Sequence[Field], below: Sequence[int], counts: Sequence[Int[Tensor, " digits"]], k: int
) -> int:
    """The first digit at which all that goes is at least `k`; `below` were counted before the digit 0."""
    together = torch.zeros(DIGIT, dtype=torch.long)
    for field, start, mine in zip(fields, below, counts, strict=True):
        together += (start + mine.cumsum(0)).clamp_(max=field.cap).clamp_(min=field.floor)
    if not sum(field.floor for field in fields) <= k <= together[-1]:
        raise ValueError(f"{k} is not between the floors and the caps, which allow {int(together[-1])}")
    return int((together >= k).int().argmax())


def _handed_out(fields: Sequence[Field], below: Sequence[int], equal: Sequence[int], k: int) -> list[int]:
    """What goes of each: everything `below` the threshold, and of what is `equal` to it the first until there are k."""
    lost = [field.clipped(count) for field, count in zip(fields, below, strict=True)]
    missing = k - sum(lost)
    for index, field in enumerate(fields):
        more = min(field.clipped(below[index] + equal[index]) - lost[index], missing)
        lost[index] += more
        missing -= more
    return lost
