"""Matrices that are one in memory, as a head that is tied to the word embedding: what they take together.

Such a matrix is stored once until one of its places gets another; from then on each place has its own. A budget of
bytes is therefore of what is stored before: two places of one matrix share its bytes.
"""

from collections.abc import Sequence

from laconic.compress.solve_groups import TiedGroup


def tied(families: Sequence[TiedGroup]) -> list[list[TiedGroup]]:
    """The families by the matrix that they hold, in order; most are alone."""
    groups: dict[object, list[TiedGroup]] = {}
    for family in families:
        sites = [site for unit in family[0] for site in unit.sites]
        key = id(sites[0].parameter) if len(sites) == 1 else sites[0].name
        groups.setdefault(key, []).append(family)
    return list(groups.values())


def stored_parts(families: Sequence[TiedGroup]) -> dict[str, float]:
    """Of units that share their matrix with another of `families`, the part of it that is stored for each."""
    groups = (group for group in tied(families) if len(group) > 1)
    return {unit.name: 1 / len(group) for group in groups for family in group for unit in family[0]}
