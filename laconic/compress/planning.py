"""Which families share one budget, and which units a plan has a line for."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from laconic.allocate import Plan
from laconic.compress.pricing import every_unit
from laconic.compress.solve_groups import SolveGroup, TiedGroup
from laconic.errors import Notice, UserError, unknown
from laconic.methods import Method
from laconic.methods.quantize.size import Quantizing


def split_by_group(keep: float | Mapping[str, float], of: Sequence[TiedGroup]) -> list[tuple[float, list[TiedGroup]]]:
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


def units_of(plan: Plan, families: Sequence[TiedGroup]) -> list[SolveGroup]:
    """The units that `plan` has a line for, in forward order."""
    return [unit for unit in every_unit(families) if unit.name in plan]


def solved(of: Sequence[TiedGroup], method: Method, plan: Plan | None) -> Iterator[tuple[SolveGroup, Method]]:
    """Each unit with what it would be solved by: its line of the `plan`, or the `method` where there is none."""
    for unit in every_unit(of):
        chosen = method if plan is None else plan[unit.name]
        if chosen is not None:
            yield unit, chosen


def warn_of_wide_groups(of: Sequence[TiedGroup], method: Method, plan: Plan | None) -> None:
    """Say so where groups of columns were asked for that are wider than a matrix: each of its rows is one group then.

    The default is left alone: it is what is usual for matrices that are wide enough.
    """
    beyond = [
        (unit, chosen.group_size)
        for unit, chosen in solved(of, method, plan)
        if isinstance(chosen, Quantizing) and _is_given(chosen)
        if isinstance(chosen.group_size, int) and chosen.group_size > unit.shape[1]
    ]
    if beyond:
        unit, columns = beyond[0]
        others = f" and of {len(beyond) - 1} other matrices" if len(beyond) > 1 else ""
        warnings.warn(
            f"group_size {columns} is more than the {unit.shape[1]} columns of '{unit.name}'{others}: "
            "each row is one group there.",
            Notice,
            stacklevel=2,
        )


def _is_given(method: Quantizing) -> bool:
    (usual,) = [field.default for field in fields(method) if field.name == "group_size"]
    return method.group_size != usual
