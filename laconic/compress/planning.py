"""Which families share one budget, and which units a plan has a line for."""

from collections.abc import Iterator, Mapping, Sequence

from laconic.allocate import Plan
from laconic.compress.pricing import every_unit
from laconic.compress.units import Family, Unit
from laconic.errors import UserError, unknown
from laconic.methods import Method


def split_by_group(keep: float | Mapping[str, float], of: Sequence[Family]) -> list[tuple[float, list[Family]]]:
    """(keep, the families that share it): one budget over all, or one for each group.

    Raises:
        UserError: `keep` names a group that is not targeted, or leaves one out.
    """
    if not isinstance(keep, Mapping):
        return [(keep, list(of))]
    groups = {family[0][0].sites[0].group.value for family in of}
    for name in keep:
        if name not in groups:
            raise unknown("targeted group", name, groups)
    for name in groups - keep.keys():
        raise UserError(f"keep must name every targeted group; '{name}' is missing.")
    return [
        (fraction, [family for family in of if family[0][0].sites[0].group == name]) for name, fraction in keep.items()
    ]


def units_of(plan: Plan, families: Sequence[Family]) -> list[Unit]:
    """The units that `plan` has a line for, in forward order."""
    return [unit for unit in every_unit(families) if unit.name in plan]


def solved(of: Sequence[Family], method: Method, plan: Plan | None) -> Iterator[tuple[Unit, Method]]:
    """Each unit with what it would be solved by: its line of the `plan`, or the `method` where there is none."""
    for unit in every_unit(of):
        chosen = method if plan is None else plan[unit.name]
        if chosen is not None:
            yield unit, chosen
