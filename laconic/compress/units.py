"""Which matrices are solved as one: those that read the same input and have as many outputs.

Query, key and value of an attention, key and value alone where the queries have more heads, gate and up projection.
One input factor for all of them costs r (in + Σ out) numbers in place of r Σ (in + out), so at equal size its rank is
higher (by half for three square matrices).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.allocate import unit_name
from laconic.model import Site


@dataclass(frozen=True)
class Unit:
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


Family = tuple[tuple[Unit, ...], ...]
"""Ways to divide the same sites into units: each by itself, and all together where that is possible."""


def families(sites: Sequence[Site], share_inputs: bool) -> list[Family]:
    """Every site in one family, in forward order; with `share_inputs` those of one input and width in the same one."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        alone = not share_inputs or site.is_lookup or site.block is None
        key = (site.name,) if alone else (site.block, site.input, site.shape)
        groups.setdefault(key, []).append(site)
    return [_family(tuple(group)) for group in groups.values()]


def _family(sites: tuple[Site, ...]) -> Family:
    apart = tuple(Unit((site,)) for site in sites)
    return (apart,) if len(sites) == 1 else (apart, (Unit(sites),))
