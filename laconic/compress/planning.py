"""From a budget to a plan: which method, of which size, goes to each unit."""

from collections.abc import Mapping, Sequence

from laconic.allocate import Plan, uniform
from laconic.calibrate import Problem
from laconic.compress.pricing import Pricing, every_unit
from laconic.compress.units import Family, Unit
from laconic.errors import UserError, unknown
from laconic.methods import Method
from laconic.progress import Track


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


def shared_out(method: Method, families: Sequence[Family], keep: float) -> Plan:
    """Every matrix, or matrices together where they can be, at the same fraction of its bytes."""
    units = [unit for family in families for unit in family[-1]]
    return uniform(method, {unit.name: unit.shape for unit in units}, keep)


def poured(
    method: Method,
    families: Sequence[Family],
    problems: Mapping[str, Problem],
    keep: float,
    pricing: Pricing,
    track: Track,
) -> tuple[Plan, float]:
    """The plan of least predicted loss within one budget over `families`, and that loss in nats per prediction."""
    units = every_unit(families)
    offered = {
        unit.name: method.ladder(problems[unit.name].weight, problems[unit.name].known)
        for unit in track(units, "Decomposing the layers")
    }
    chosen = pricing.spend(families, offered, problems, keep)
    plan = {name: rung.method for name, rung in chosen.items()}
    return plan, sum(rung.loss for rung in chosen.values())


def units_of(plan: Plan, families: Sequence[Family]) -> list[Unit]:
    """The units that `plan` has a line for, in forward order."""
    return [unit for unit in every_unit(families) if unit.name in plan]
