"""The number of heads and channels that stay in each layer, by the parameters of the step `narrow`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from laconic.compress.width_budget import (
    Currency,
    global_counts,
    price_function,
    share_budget,
    standardise_costs,
    uniform_counts,
)
from laconic.compress.width_parts import Importance, RemovalOrder
from laconic.model import Group
from laconic.model.prunable_group import CoupledGroups

OrderOf = Callable[[CoupledGroups, int], RemovalOrder]
"""Returns the order in which the parts of coupled groups are removed, until some are left."""


@dataclass(frozen=True)
class WidthCounts:
    """The parameters of `Narrow` that decide how many parts stay.

    Args:
        keeps: the fraction of heads and of channels that stays.
        keep: the fraction of the price of all parts that stays, in place of `keeps`; None without it.
        currency: what `keep` counts.
        multiple: channels that are removed at once.
        importance: how parts are ranked.
        compares: whether parts of all layers compete.
    """

    keeps: Mapping[Group, float]
    keep: float | None
    currency: Currency
    multiple: int
    importance: Importance
    compares: bool

    @property
    def least(self) -> int:
        """The number of parts until which a layer is ranked, where layers compete."""
        # Standard scores are computed over all parts, including those that always stay.
        return 0 if self.importance == "variance" else 1

    def count(self, all_coupled: Sequence[CoupledGroups], order_of: OrderOf) -> dict[str, int]:
        """Return the number of parts that stay, by `PrunableGroup.coupling`.

        Args:
            all_coupled: coupled groups of all layers.
            order_of: ranks the parts of one layer; called only if layers compete.
        """
        if not self.compares:
            return uniform_counts(all_coupled, self.keeps, self.multiple)
        removals = [order_of(coupled, self.least) for coupled in all_coupled]
        price = len if self.keep is None else price_function(self.currency)
        if self.importance == "variance":
            removals = standardise_costs(removals, [price(coupled) for coupled in all_coupled])
        pairs = list(zip(all_coupled, removals, strict=True))
        if self.keep is not None:
            return share_budget(pairs, self.keep, price, self.multiple)
        return global_counts(pairs, self.keeps, price, self.multiple)
