"""How `keep` becomes one rung for each unit: counted from shapes, or in time measured on this machine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from laconic.allocate import Alternatives, Currency, budget_of, choose
from laconic.calibrate import Problem
from laconic.compress.solve_groups import SolveGroup, TiedGroup
from laconic.compress.tied import tied
from laconic.methods import Candidate, Candidates

Ladders = Mapping[str, Candidates]
"""By the name of the unit."""


class Pricing(ABC):
    """What the rungs cost, and so which of them are chosen."""

    @abstractmethod
    def spend(
        self, families: Sequence[TiedGroup], ladders: Ladders, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
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
        self, families: Sequence[TiedGroup], ladders: Ladders, problems: Mapping[str, Problem], keep: float
    ) -> dict[str, Candidate]:
        if self.currency == "macs":
            return choose(alternatives(families, ladders), budget_of(apart(families, ladders), keep, self.currency))
        # What is stored once counts once, for as long as nothing takes its place.
        groups, once = tied(families), _stored_once(families, ladders)
        offered = [way for group in groups for way in _ways(group, ladders, once)]
        counted = [once.get(unit.name, ladders[unit.name]) for family in families for unit in family[0]]
        return choose(offered, budget_of(counted, keep, self.currency))


def _ways(group: Sequence[TiedGroup], ladders: Ladders, once: Ladders) -> list[Alternatives]:
    """The alternatives of families that are one matrix in memory: each with a size of its own, or all as they are."""
    if len(group) == 1:
        return alternatives(group, ladders)
    names = [unit.name for family in group for unit in family[0]]
    return [[{name: ladders[name] for name in names}, {name: Candidates((once[name].dense,)) for name in names}]]


def _stored_once(families: Sequence[TiedGroup], ladders: Ladders) -> dict[str, Candidates]:
    """The ladders of matrices that are one in memory; all but the first take nothing as they are."""
    found: dict[str, Candidates] = {}
    for first, *others in (group for group in tied(families) if len(group) > 1):
        found |= {unit.name: ladders[unit.name] for unit in first[0]}
        for unit in (unit for family in others for unit in family[0]):
            free = replace(ladders[unit.name].dense, nbytes=0, parameters=0)
            found[unit.name] = Candidates((free,))
    return found


def every_unit(families: Sequence[TiedGroup]) -> list[SolveGroup]:
    """The units of all alternatives."""
    return [unit for family in families for alternative in family for unit in alternative]


def apart(families: Sequence[TiedGroup], ladders: Ladders) -> list[Candidates]:
    """The ladder of every matrix by itself."""
    return [ladders[unit.name] for family in families for unit in family[0]]


def alternatives(families: Sequence[TiedGroup], ladders: Ladders) -> list[Alternatives]:
    """The ladders of each family, one mapping for each way to divide it."""
    return [[{unit.name: ladders[unit.name] for unit in alternative} for alternative in family] for family in families]
