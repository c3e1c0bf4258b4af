"""How `keep` becomes one rung for each unit: counted from shapes, or in time measured on this machine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laconic.allocate import Alternatives, Currency, budget_of, choose
from laconic.calibrate import Problem
from laconic.compress.units import Family, Unit
from laconic.methods import Ladder, Rung

Ladders = Mapping[str, Ladder]
"""By the name of the unit."""


class Pricing(ABC):
    """What the rungs cost, and so which of them are chosen."""

    @abstractmethod
    def spend(
        self, families: Sequence[Family], ladders: Ladders, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Rung]:
        """One rung for each unit of one alternative of each family, by the unit's name, within `keep`, or, where
        that is measured, as near to it as was found.

        Raises:
            UserError: the smallest sizes on offer cost more.
        """


@dataclass(frozen=True)
class Counted(Pricing):
    """`keep` is of what the matrices themselves cost."""

    currency: Currency

    def spend(
        self, families: Sequence[Family], ladders: Ladders, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Rung]:
        return choose(alternatives(families, ladders), budget_of(apart(families, ladders), keep, self.currency))


def every_unit(families: Sequence[Family]) -> list[Unit]:
    """The units of all alternatives."""
    return [unit for family in families for alternative in family for unit in alternative]


def apart(families: Sequence[Family], ladders: Ladders) -> list[Ladder]:
    """The ladder of every matrix by itself."""
    return [ladders[unit.name] for family in families for unit in family[0]]


def alternatives(families: Sequence[Family], ladders: Ladders) -> list[Alternatives]:
    """The ladders of each family, one mapping for each way to divide it."""
    return [[{unit.name: ladders[unit.name] for unit in alternative} for alternative in family] for family in families]
