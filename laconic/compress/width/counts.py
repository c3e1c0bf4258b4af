"""How many heads and channels stay, and where: the same fraction everywhere, or where they are worth most."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Literal

from laconic.allocate.uniform import CLOSE
from laconic.calibrate.profile import USUAL
from laconic.compress.width.importance import Removal
from laconic.model.prunable_group import CoupledGroups
from laconic.model.site import Group

Currency = Literal["bytes", "macs"]

Price = Callable[[CoupledGroups], int]
"""Of one part of a family."""


def price_in(currency: Currency) -> Price:
    """Numbers stored; or multiply-accumulates for a token in a row of the usual length, those of its scores too."""

    def price(family: CoupledGroups) -> int:
        stored = sum(inner.parameters for inner in family)
        if currency == "bytes" or family[0].group is Group.FFN:
            return stored
        return stored + sum(2 * inner.size * USUAL.length for inner in family)

    return price


def chunk_of(family: CoupledGroups, multiple: int) -> int:
    """Parts that go at once, so that what stays is a multiple: of channels, where there are enough of them."""
    return multiple if family[0].group is Group.FFN and family[0].count >= 2 * multiple else 1


def fraction_of(family: CoupledGroups, keep: float, multiple: int) -> int:
    """How many parts `keep` leaves: of heads the nearest number, of channels the next lower multiple; at least one.

    Where that multiple is over 1 % less than `keep` of the channels, halves of it are tried, down to single ones.
    """
    count, chunk = family[0].count, chunk_of(family, multiple)
    if keep == 1:
        return count
    if family[0].group is Group.ATTENTION:
        return max(1, int(keep * count + 0.5))
    wanted = int(keep * count + 1e-9)
    while chunk > 1 and wanted // chunk * chunk < (1 - CLOSE) * keep * count:
        chunk //= 2
    return max(1, wanted // chunk * chunk)


def as_many_everywhere(
    families: Sequence[CoupledGroups], keeps: Mapping[Group, float], multiple: int
) -> dict[str, int]:
    """The same fraction of every family of a group stays; by what loses the same parts."""
    return {family[0].coupling: fraction_of(family, keeps[family[0].group], multiple) for family in families}


def where_worth_most(
    several: Sequence[tuple[CoupledGroups, Removal]], keeps: Mapping[Group, float], price: Price, multiple: int
) -> dict[str, int]:
    """That fraction of all parts of a group stays, where it is worth most; by what loses the same parts."""
    counts: dict[str, int] = {}
    for group, keep in keeps.items():
        mine = [(family, of) for family, of in several if family[0].group is group]
        counts |= shared_out(mine, keep, price, multiple)
    return counts


@dataclass(frozen=True)
class _Chunk:
    """Some parts of a family that go together: how many, what that saves, and what it costs for each unit saved."""

    family: str
    parts: int
    saves: int
    rate: float

    @property
    def each(self) -> int:
        """What a single part saves."""
        return self.saves // self.parts


def shared_out(
    several: Sequence[tuple[CoupledGroups, Removal]], keep: float, price: Price, multiple: int
) -> dict[str, int]:
    """How many parts of each family stay, so that `keep` of what all parts cost stays and what goes is worth least; by
    what loses the same parts.

    No family loses all, so more than `keep` may stay. Where over 1 % less than `keep` would, parts come back one by
    one, those that went last first, as far as they fit.
    """
    whole = sum(price(family) * family[0].count for family, _ in several)
    excess = whole - int(keep * whole + 1e-6)
    chunks = [
        chunk
        for family, removal in several
        for chunk in _chunks(family[0].coupling, removal, price(family), chunk_of(family, multiple))
    ]
    counts = {family[0].coupling: family[0].count for family, _ in several}
    gone: list[_Chunk] = []
    # Stable, and rates of a family never fall: its own order is kept.
    for chunk in sorted(chunks, key=lambda chunk: chunk.rate):
        if excess <= 0:
            break
        gone.append(chunk)
        counts[chunk.family] -= chunk.parts
        excess -= chunk.saves
    if -excess > CLOSE * keep * whole:
        for chunk in reversed(gone):
            back = min(chunk.parts, -excess // chunk.each)
            counts[chunk.family] += back
            excess += back * chunk.each
    return counts


def _chunks(family: str, removal: Removal, price: int, size: int) -> list[_Chunk]:
    """Every part that may go, in order; the first chunk is the remainder that leaves a multiple."""
    count = removal.count
    ends = range(count % size or size, count - size + 1, size)
    chunks, begin, rate = [], 0, 0.0
    for end in ends:
        rate = max(rate, sum(removal.costs[begin:end]) / (price * (end - begin)))
        chunks.append(_Chunk(family, end - begin, price * (end - begin), rate))
        begin = end
    return chunks


def standardised(removals: Sequence[Removal], prices: Sequence[int]) -> list[Removal]:
    """Costs as multiples of the spread of their family around its mean, from zero up, as FLAP compares layers; each
    times the price of its part, as FLAP does not ask what that saves."""
    found = [_standard(removal.costs) for removal in removals]
    least = min((cost for costs in found for cost in costs), default=0.0)
    return [
        replace(removal, costs=tuple(price * (cost - least) for cost in costs))
        for removal, costs, price in zip(removals, found, prices, strict=True)
    ]


def _standard(costs: Sequence[float]) -> tuple[float, ...]:
    mean = fmean(costs) if costs else 0.0
    spread = pstdev(costs) if costs else 0.0
    return tuple((cost - mean) / spread if spread > 0 else 0.0 for cost in costs)
