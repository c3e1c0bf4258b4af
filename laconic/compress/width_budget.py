"""Decide how many heads and channels of each layer stay, from the order in which they are removed.

A *part* is an attention head (or the heads that share keys and values) or a feed-forward channel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Literal

from laconic.allocate.uniform import CLOSE
from laconic.calibrate.passes import DEFAULT_WORKLOAD
from laconic.compress.width_parts import RemovalOrder
from laconic.errors import UserError, must_be
from laconic.model import LanguageModel
from laconic.model.prunable_group import CoupledGroups
from laconic.model.prunable_layers import PARTS, suggest_steps
from laconic.model.site import Group

Currency = Literal["bytes", "macs"]

Price = Callable[[CoupledGroups], int]
"""Returns the price of one part of coupled groups."""


def price_function(currency: Currency) -> Price:
    """Return a function for the price of one part.

    The price is the number of parameters for `bytes`. For `macs` it is the number of multiply-accumulates per token,
    which for a head includes attention over a row of the default length.
    """

    def price(coupled: CoupledGroups) -> int:
        stored = sum(group.parameters for group in coupled)
        if currency == "bytes" or coupled[0].group is Group.FFN:
            return stored
        return stored + sum(2 * group.size * DEFAULT_WORKLOAD.length for group in coupled)

    return price


def chunk_size(coupled: CoupledGroups, multiple: int) -> int:
    """Return how many parts are removed at once.

    Args:
        coupled: coupled groups.
        multiple: number of channels that are removed at once; heads, and channels of a layer with fewer than twice as
            many, are removed one by one.
    """
    return multiple if coupled[0].group is Group.FFN and coupled[0].count >= 2 * multiple else 1


def parts_kept(coupled: CoupledGroups, keep: float, multiple: int) -> int:
    """Return the number of parts to keep, at least 1.

    Heads are rounded to the nearest number, channels down to a multiple. If that removes over 1 % more than requested,
    the multiple is halved, down to single channels.

    Args:
        coupled: coupled groups.
        keep: fraction of the parts to keep.
        multiple: the number of channels kept is a multiple of this.
    """
    count, chunk = coupled[0].count, chunk_size(coupled, multiple)
    if keep == 1:
        return count
    if coupled[0].group is Group.ATTENTION:
        return max(1, int(keep * count + 0.5))
    target = int(keep * count + 1e-9)
    while chunk > 1 and target // chunk * chunk < (1 - CLOSE) * keep * count:
        chunk //= 2
    return max(1, target // chunk * chunk)


def uniform_counts(all_coupled: Sequence[CoupledGroups], keeps: Mapping[Group, float], multiple: int) -> dict[str, int]:
    """Return the number of parts to keep if every layer keeps the same fraction, by `PrunableGroup.coupling`.

    Args:
        all_coupled: coupled groups of all layers.
        keeps: fraction to keep of heads and of channels.
        multiple: the number of channels kept is a multiple of this.
    """
    return {coupled[0].coupling: parts_kept(coupled, keeps[coupled[0].group], multiple) for coupled in all_coupled}


def global_counts(
    pairs: Sequence[tuple[CoupledGroups, RemovalOrder]], keeps: Mapping[Group, float], price: Price, multiple: int
) -> dict[str, int]:
    """Return the number of parts to keep if parts of all layers compete, by `PrunableGroup.coupling`.

    Heads compete with heads, and channels with channels.

    Args:
        pairs: coupled groups, each with the order in which its parts are removed.
        keeps: fraction of the parts kept, of heads and of channels.
        price: the price of one part.
        multiple: channels that are removed at once.
    """
    counts: dict[str, int] = {}
    for kind, keep in keeps.items():
        competing = [pair for pair in pairs if pair[0][0].group is kind]
        counts |= share_budget(competing, keep, price, multiple)
    return counts


@dataclass(frozen=True)
class _Chunk:
    """Parts of one layer that are removed together: their number, the price saved, and the importance per price."""

    coupling: str
    parts: int
    saves: int
    rate: float

    @property
    def each(self) -> int:
        """The price of a single part."""
        return self.saves // self.parts


def share_budget(
    pairs: Sequence[tuple[CoupledGroups, RemovalOrder]], keep: float, price: Price, multiple: int
) -> dict[str, int]:
    """Return the number of parts to keep if parts are removed in order of importance per price.

    Parts are removed until at most `keep` of the total price stays. Every layer keeps at least one part, so more may
    stay. If over 1 % less than `keep` would stay, parts are restored one by one, beginning with the last removed.

    Args:
        pairs: coupled groups, each with the order in which its parts are removed.
        keep: fraction of the price of all parts that stays.
        price: the price of one part.
        multiple: channels that are removed at once.

    Returns:
        Counts by `PrunableGroup.coupling`.
    """
    whole = sum(price(coupled) * coupled[0].count for coupled, _ in pairs)
    excess = whole - int(keep * whole + 1e-6)
    chunks = [
        chunk
        for coupled, removal in pairs
        for chunk in _make_chunks(coupled[0].coupling, removal, price(coupled), chunk_size(coupled, multiple))
    ]
    counts = {coupled[0].coupling: coupled[0].count for coupled, _ in pairs}
    removed: list[_Chunk] = []
    # The sort is stable and the rates of a layer never fall, so the order within a layer is kept.
    for chunk in sorted(chunks, key=lambda chunk: chunk.rate):
        if excess <= 0:
            break
        removed.append(chunk)
        counts[chunk.coupling] -= chunk.parts
        excess -= chunk.saves
    if -excess > CLOSE * keep * whole:
        for chunk in reversed(removed):
            restored = min(chunk.parts, -excess // chunk.each)
            counts[chunk.coupling] += restored
            excess += restored * chunk.each
    return counts


def _make_chunks(coupling: str, removal: RemovalOrder, price: int, size: int) -> list[_Chunk]:
    """Divide the removable parts into chunks, in order; the first chunk is smaller if needed to leave a multiple."""
    count = removal.count
    ends = range(count % size or size, count - size + 1, size)
    chunks, begin, rate = [], 0, 0.0
    for end in ends:
        rate = max(rate, sum(removal.costs[begin:end]) / (price * (end - begin)))
        chunks.append(_Chunk(coupling, end - begin, price * (end - begin), rate))
        begin = end
    return chunks


def check_keep_options(keep: float | None, currency: Currency, ranking: str | None) -> None:
    """Raise UserError if `currency` or `ranking` of the step contradicts `keep`."""
    if keep is None and currency != "bytes":
        raise UserError("currency must be left out without keep, because it sets what keep counts.")
    if keep is not None and ranking == "local":
        raise UserError("ranking must be global or left out with keep, because keep compares heads with channels.")


def check_groups(
    all_coupled: Sequence[CoupledGroups], lm: LanguageModel, groups: Sequence[Group], *, compared: bool, in_order: bool
) -> None:
    """Raise UserError if parts of these layers cannot be removed in the way that a step removes them.

    Args:
        all_coupled: coupled groups of all layers.
        lm: the model.
        groups: the groups that lose parts.
        compared: whether parts of all layers compete, so that layers keep different numbers.
        in_order: whether parts are chosen block by block.
    """
    model_type, noun = lm.model.config.model_type, " or ".join(PARTS[group] for group in groups)
    if not all_coupled:
        raise UserError(
            f"The blocks of this '{model_type}' have no {noun} that can be removed one by one: channels of experts "
            f"cannot, and a dropped layer has none; {suggest_steps(lm, groups)}."
        )
    if not any(coupled[0].count > 1 for coupled in all_coupled):
        raise UserError(
            f"No layer of this '{model_type}' has two or more {noun}, of which one must stay (heads that share a key "
            f"are removed together and count as one); {suggest_steps(lm, groups)}."
        )
    if compared and any(coupled[0].is_uniform for coupled in all_coupled):
        raise UserError(
            f"Attentions of '{model_type}' must keep equally many heads, as its class reads their number from the "
            "configuration; give narrow:heads=F without ranking: global, or narrow:channels=F."
        )
    if in_order and any(len(coupled) > 1 for coupled in all_coupled):
        raise UserError(
            f"Attentions of '{model_type}' share a position bias and must lose the same heads, so their heads "
            "cannot be chosen block by block; leave out sequential and anchored."
        )


def check_budget(all_coupled: Sequence[CoupledGroups], keep: float, price: Price, multiple: int) -> None:
    """Raise UserError if the parts that must stay in every layer cost more than `keep` of the total price.

    Args:
        all_coupled: coupled groups of all layers.
        keep: fraction of the price of all parts.
        price: the price of one part.
        multiple: channels that are removed at once.
    """
    whole = sum(price(coupled) * coupled[0].count for coupled in all_coupled)
    least = sum(price(coupled) * chunk_size(coupled, multiple) for coupled in all_coupled) / whole
    if keep < least:
        raise must_be("keep", f"at least {least:.4f}, the size of the heads and channels that must stay", keep)


def standardise_costs(removals: Sequence[RemovalOrder], prices: Sequence[int]) -> list[RemovalOrder]:
    """Replace costs by standard scores within each layer, shifted to a minimum of zero, times the price of a part.

    FLAP compares layers by standard scores and ignores the price of a part. The caller divides costs by the price, so
    multiplying here cancels that.

    Args:
        removals: the removal order of each layer, with costs.
        prices: the price of a part in each layer.
    """
    scores = [_standardise(removal.costs) for removal in removals]
    least = min((cost for costs in scores for cost in costs), default=0.0)
    return [
        replace(removal, costs=tuple(price * (cost - least) for cost in costs))
        for removal, costs, price in zip(removals, scores, prices, strict=True)
    ]


def _standardise(costs: Sequence[float]) -> tuple[float, ...]:
    mean = fmean(costs) if costs else 0.0
    spread = pstdev(costs) if costs else 0.0
    return tuple((cost - mean) / spread if spread > 0 else 0.0 for cost in costs)
