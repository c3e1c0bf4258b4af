"""Groups of layers that are solved as one matrix, and the division of a budget or a plan among them.

Layers can be solved together if they read the same input and have the same shape: query, key and value of an attention
(key and value only, if there are more query heads), or gate and up projection. At rank r, a shared input factor takes
r (in + Σ out) numbers; separate factors take r Σ (in + out). At equal size the shared factor has a higher rank (by half
for three square matrices).

A *unit* (`SolveGroup`) is one layer or several layers solved as one. A *family* (`TiedGroup`) lists the ways to divide
the same layers into units.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches

from laconic.allocate import Plan, group_name, site_names
from laconic.errors import Notice, UserError, unknown
from laconic.methods import Method
from laconic.methods.quantize.base import QuantizationMethod
from laconic.model import LanguageModel, Site
from laconic.model.targets import excluded_error


@dataclass(frozen=True)
class SolveGroup:
    """Layers that get one compressed matrix, divided among them: one layer, or several that read the same input.

    Args:
        sites: the layers, in forward order.
    """

    sites: tuple[Site, ...]

    @property
    def name(self) -> str:
        """The name in a plan, such as `h.0.attn.{q,k}`."""
        return group_name([site.name for site in self.sites])

    @property
    def shape(self) -> tuple[int, int]:
        """(Σ out, in)."""
        return sum(site.shape[0] for site in self.sites), self.sites[0].shape[1]

    @property
    def rows(self) -> tuple[int, ...]:
        """The number of outputs of each layer."""
        return tuple(site.shape[0] for site in self.sites)


TiedGroup = tuple[tuple[SolveGroup, ...], ...]
"""Alternative ways to divide the same layers into units: each layer by itself, and all together if possible."""


def all_units(groups: Sequence[TiedGroup]) -> list[SolveGroup]:
    """Return the units of all alternatives of all groups."""
    return [unit for group in groups for alternative in group for unit in alternative]


def tied_groups(sites: Sequence[Site], share_inputs: bool) -> list[TiedGroup]:
    """Divide the targeted layers into families, in forward order.

    Args:
        sites: the targeted layers.
        share_inputs: put layers with the same block, input and shape into one family; otherwise each layer is alone.
    """
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        alone = not share_inputs or site.is_lookup or site.block is None
        key = (site.name,) if alone else (site.block, site.input, site.shape)
        groups.setdefault(key, []).append(site)
    return [_tie(tuple(group)) for group in groups.values()]


def _tie(sites: tuple[Site, ...]) -> TiedGroup:
    apart = tuple(SolveGroup((site,)) for site in sites)
    return (apart,) if len(sites) == 1 else (apart, (SolveGroup(sites),))


def sites_in_plan(plan: Plan, lm: LanguageModel) -> list[Site]:
    """The layers of `lm` that `plan` names.

    Raises:
        UserError: `lm` has no such layer, or the layer cannot be compressed.
    """
    sites = {site.name: site for site in lm.sites(("all",))}
    names = [name for line in plan for name in site_names(line)]
    excluded = lm.excluded_matrices()
    for name in names:
        if name in excluded:
            raise excluded_error(name, excluded[name])
        if name not in sites:
            nearest = get_close_matches(name, list(sites), n=3, cutoff=0) or list(sites)[:3]
            raise unknown("site of this model", name, nearest)
    return [sites[name] for name in names]


def groups_in_plan(plan: Plan, sites: Sequence[Site]) -> list[TiedGroup]:
    """Return the units that the lines of a plan name, each as a family without alternatives.

    Args:
        plan: the plan.
        sites: all layers that it names.

    Raises:
        UserError: a line names several layers that cannot be solved as one, or a layer is in two lines.
    """
    by_name = {site.name: site for site in sites}
    named: set[str] = set()
    for line, method in plan.items():
        here = [by_name[name] for name in site_names(line)]
        if twice := named & {site.name for site in here}:
            raise UserError(f"The plan names '{sorted(twice)[0]}' in two lines; keep one of them.")
        named |= {site.name for site in here}
        if len(here) > 1:
            _check_together(line, here, method)
    return [((SolveGroup(tuple(by_name[name] for name in site_names(line))),),) for line in plan]


def _check_together(line: str, sites: Sequence[Site], method: Method | None) -> None:
    if len({(site.block, site.input, site.shape) for site in sites}) > 1 or any(site.is_lookup for site in sites):
        raise UserError(f"The plan's line '{line}' must name matrices of one shape that read one input; split it.")
    if method is not None and not method.shares_inputs:
        raise UserError(f"The plan's line '{line}' names several matrices, but '{method.name}' makes no input factor.")


def group_by_matrix(groups: Sequence[TiedGroup]) -> list[list[TiedGroup]]:
    """Collect the families whose layers share one parameter, such as a head that is tied to the embedding.

    A shared parameter is stored once until one of its layers gets a new matrix. A budget in bytes counts the stored
    bytes before compression, so the layers that share a parameter also share its bytes.
    """
    by_matrix: dict[object, list[TiedGroup]] = {}
    for group in groups:
        sites = [site for unit in group[0] for site in unit.sites]
        key = id(sites[0].parameter) if len(sites) == 1 else sites[0].name
        by_matrix.setdefault(key, []).append(group)
    return list(by_matrix.values())


def stored_fractions(groups: Sequence[TiedGroup]) -> dict[str, float]:
    """Return 1/n by unit name for every unit that shares its parameter with n − 1 others; other units are missing."""
    shared = (tied for tied in group_by_matrix(groups) if len(tied) > 1)
    return {unit.name: 1 / len(tied) for tied in shared for group in tied for unit in group[0]}


def split_by_group(
    keep: float | Mapping[str, float], groups: Sequence[TiedGroup]
) -> list[tuple[float, list[TiedGroup]]]:
    """Return pairs of a budget and the families that share it.

    Args:
        keep: the fraction to keep of all bytes, or one fraction for each targeted group (`attention`, `ffn`, …).
        groups: the families of all targeted layers.

    Raises:
        UserError: `keep` names a group that is not targeted, or leaves one out.
    """
    if not isinstance(keep, Mapping):
        return [(keep, list(groups))]
    names = {group[0][0].sites[0].group.value for group in groups}
    for name in keep:
        if name not in names:
            raise unknown("targeted group", name, names)
    for name in names - keep.keys():
        raise UserError(f"keep must name every targeted group; '{name}' is missing.")
    return [
        (fraction, [group for group in groups if group[0][0].sites[0].group == name]) for name, fraction in keep.items()
    ]


def planned_units(plan: Plan, groups: Sequence[TiedGroup]) -> list[SolveGroup]:
    """Return the units that have a line in the plan, in forward order."""
    return [unit for unit in all_units(groups) if unit.name in plan]


def methods_by_unit(
    groups: Sequence[TiedGroup], method: Method, plan: Plan | None
) -> Iterator[tuple[SolveGroup, Method]]:
    """Yield pairs of a unit and its method in the plan, or `method` if there is no plan; dense units are left out."""
    for unit in all_units(groups):
        chosen = method if plan is None else plan[unit.name]
        if chosen is not None:
            yield unit, chosen


def warn_of_wide_groups(groups: Sequence[TiedGroup], method: Method, plan: Plan | None) -> None:
    """Warn if a `group_size` that the user set is larger than the width of a matrix, so each row is one group."""
    beyond = [
        (unit, chosen.group_size)
        for unit, chosen in methods_by_unit(groups, method, plan)
        if isinstance(chosen, QuantizationMethod) and _is_set(chosen)
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


def _is_set(method: QuantizationMethod) -> bool:
    (usual,) = [field.default for field in fields(method) if field.name == "group_size"]
    return method.group_size != usual
