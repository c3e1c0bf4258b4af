"""Decide how many heads and channels of each layer stay, from the order in which they are removed.

A *part* is an attention head (or the heads that share keys and values) or a feed-forward channel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Literal

from laconic.allocate.uniform import CLOSE
from laconic.calibrate.passes import USUAL
from laconic.compress.width.importance import RemovalOrder
from laconic.model.prunable_group import CoupledGroups
from laconic.model.site import Group

Currency = Literal["bytes", "macs"]

Price = Callable[[CoupledGroups], int]
"""Returns the price of one part of coupled groups."""


def price_function(currency: Currency) -> Price:
    """Return a function for the price of one part.

    The price is the number of parameters for `bytes`. For `macs` it is the number of multiply-accumulates per token,
    which for a head includes attention over a row of the default length.
    """

    def price(family: CoupledGroups) -> int:
        stored = sum(inner.parameters for inner in family)
        if currency == "bytes" or family[0].group is Group.FFN:
            return stored
        return stored + sum(2 * inner.size * USUAL.length for inner in family)

    return price


def chunk_size(family: CoupledGroups, multiple: int) -> int:
    """Return how many parts are removed at once.

    Args:
        family: coupled groups.
        multiple: number of channels that are removed at once; heads, and channels of a layer with fewer than twice as
            many, are removed one by one.
    """
    return multiple if family[0].group is Group.FFN and family[0].count >= 2 * multiple else 1


def parts_kept(family: CoupledGroups, keep: float, multiple: int) -> int:
    """Return the number of parts to keep, at least 1.

    Heads are rounded to the nearest number, channels down to a multiple. If that removes over 1 % more than asked for,
    the multiple is halved, down to single channels.

    Args:
        family: coupled groups.
        keep: fraction of the parts to keep.
        multiple: the number of channels kept is a multiple of this.
    """
    count, chunk = family[0].count, chunk_size(family, multiple)
    if keep == 1:
        return count
    if family[0].group is Group.ATTENTION:
        return max(1, int(keep * count + 0.5))
    wanted = int(keep * count + 1e-9)
    while chunk > 1 and wanted // chunk * chunk < (1 - CLOSE) * keep * count:
        chunk //= 2
    return max(1, wanted // chunk * chunk)


def uniform_counts(families: Sequence[CoupledGroups], keeps: Mapping[Group, float], multiple: int) -> dict[str, int]:
    """Return the number of parts to keep if every layer keeps the same fraction, by `PrunableGroup.coupling`.

    Args:
        families: coupled groups of all layers.
        keeps: fraction to keep of heads and of channels.
        multiple: the number of channels kept is a multiple of this.
    """
    return {family[0].coupling: parts_kept(family, keeps[family[0].group], multiple) for family in families}


def global_counts(
    several: Sequence[tuple[CoupledGroups, RemovalOrder]], keeps: Mapping[Group, float], price: Price, multiple: int
) -> dict[str, int]:
    """Return the number of parts to keep if parts of all layers compete, by `PrunableGroup.coupling`.

    Heads compete with heads, and channels with channels.

    Args:
        several: coupled groups, each with the order in which its parts are removed.
        keeps: fraction of the parts kept, of heads and of channels.
        price: the price of one part.
        multiple: channels that are removed at once.
    """
    counts: dict[str, int] = {}
    for group, keep in keeps.items():
        mine = [(family, of) for family, of in several if family[0].group is group]
        counts |= share_budget(mine, keep, price, multiple)
    return counts


@dataclass(frozen=True)
class _Chunk:
    """Parts of one layer that are removed together: their number, the price saved, and the importance per price."""

    family: str
    parts: int
    saves: int
    rate: float

    @property
    def each(self) -> int:
        """The price of a single part."""
        return self.saves // self.parts


def share_budget(
    several: Sequence[tuple[CoupledGroups, RemovalOrder]], keep: float, price: Price, multiple: int
) -> dict[str, int]:
    """Return the number of parts to keep if parts are removed in order of importance per price.

    Parts are removed until at most `keep` of the total price stays. Every layer keeps at least one part, so more may
    stay. If over 1 % less than `keep` would stay, parts are restored one by one, beginning with the last removed.

    Args:
        several: coupled groups, each with the order in which its parts are removed.
        keep: fraction of the price of all parts that stays.
        price: the price of one part.
        multiple: channels that are removed at once.

    Returns:
        Counts by `PrunableGroup.coupling`.
    """
    whole = sum(price(family) * family[0].count for family, _ in several)
    excess = whole - int(keep * whole + 1e-6)
    chunks = [
        chunk
        for family, removal in several
        for chunk in _make_chunks(family[0].coupling, removal, price(family), chunk_size(family, multiple))
    ]
    counts = {family[0].coupling: family[0].count for family, _ in several}
    gone: list[_Chunk] = []
    # The sort is stable and the rates of a family never fall, so the order within a family is kept.
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


def _make_chunks(family: str, removal: RemovalOrder, price: int, size: int) -> list[_Chunk]:
    """Divide the removable parts into chunks, in order; the first chunk is smaller if needed to leave a multiple."""
    count = removal.count
    ends = range(count % size or size, count - size + 1, size)
    chunks, begin, rate = [], 0, 0.0
    for end in ends:
        rate = max(rate, sum(removal.costs[begin:end]) / (price * (end - begin)))
        chunks.append(_Chunk(family, end - begin, price * (end - begin), rate))
        begin = end
    return chunks


def standardise_costs(removals: Sequence[RemovalOrder], prices: Sequence[int]) -> list[RemovalOrder]:
    """Replace costs by standard scores within each layer, shifted to a minimum of zero, times the price of a part.

    FLAP compares layers by standard scores and ignores the price of a part. The caller divides costs by the price, so
    multiplying here cancels that.

    Args:
        removals: the removal order of each layer, with costs.
        prices: the price of a part in each layer.
    """
    found = [_standardise(removal.costs) for removal in removals]
    least = min((cost for costs in found for cost in costs), default=0.0)
    return [
        replace(removal, costs=tuple(price * (cost - least) for cost in costs))
        for removal, costs, price in zip(removals, found, prices, strict=True)
    ]


def _standardise(costs: Sequence[float]) -> tuple[float, ...]:
    mean = fmean(costs) if costs else 0.0
    spread = pstdev(costs) if costs else 0.0
    return tuple((cost - mean) / spread if spread > 0 else 0.0 for cost in costs)
