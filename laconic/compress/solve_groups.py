"""Which matrices are solved as one: those that read the same input and have as many outputs.

Query, key and value of an attention, key and value alone where the queries have more heads, gate and up projection.
One input factor for all of them costs r (in + Σ out) numbers in place of r Σ (in + out), so at equal size its rank is
higher (by half for three square matrices).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.allocate import Plan, site_names, unit_name
from laconic.errors import UserError
from laconic.methods import Method
from laconic.model import Site


@dataclass(frozen=True)
class SolveGroup:
    """Sites that get one format, divided among them: one, or several of the same input."""

    sites: tuple[Site, ...]

    @property
    def name(self) -> str:
        """As a plan writes it."""
        return unit_name([site.name for site in self.sites])

    @property
    def shape(self) -> tuple[int, int]:
        """(Σ out, in)."""
        return sum(site.shape[0] for site in self.sites), self.sites[0].shape[1]

    @property
    def rows(self) -> tuple[int, ...]:
        """The outputs of each site."""
        return tuple(site.shape[0] for site in self.sites)


TiedGroup = tuple[tuple[SolveGroup, ...], ...]
"""Ways to divide the same sites into units: each by itself, and all together where that is possible."""


def tied_groups(sites: Sequence[Site], share_inputs: bool) -> list[TiedGroup]:
    """Every site in one family, in forward order; with `share_inputs` those of one input and width in the same one."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        alone = not share_inputs or site.is_lookup or site.block is None
        key = (site.name,) if alone else (site.block, site.input, site.shape)
        groups.setdefault(key, []).append(site)
    return [_family(tuple(group)) for group in groups.values()]


def _family(sites: tuple[Site, ...]) -> TiedGroup:
    apart = tuple(SolveGroup((site,)) for site in sites)
    return (apart,) if len(sites) == 1 else (apart, (SolveGroup(sites),))


def planned_families(plan: Plan, sites: Sequence[Site]) -> list[TiedGroup]:
    """The units that the lines of `plan` name, each with no alternative.

    Raises:
        UserError: a line of several sites that cannot be solved as one, or a site in two lines.
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
