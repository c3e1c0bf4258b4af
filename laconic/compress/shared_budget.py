"""The budgets of a step: one for all targeted layers, or one for each kind of layer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from laconic.compress.solve_groups import LayerSet
from laconic.errors import UserError, add_place, unknown
from laconic.model import Group


class SharedBudget(NamedTuple):
    """A budget and the layers that share it.

    Args:
        keep: the fraction of their bytes to keep.
        layer_sets: the sets of these layers.
        place: the name of the fraction in error messages: `keep`, or `keep.experts` for one of several.
    """

    keep: float
    layer_sets: list[LayerSet]
    place: str = "keep"

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Within the block, an error about `keep` begins with `place`, so that it names the group."""
        try:
            yield
        except UserError as error:
            raise UserError(re.sub(r"^keep\b", self.place, str(error))) from error


def split_budget(keep: float | Mapping[str, float], layer_sets: Sequence[LayerSet]) -> list[SharedBudget]:
    """Divide the targeted layers among the budgets of `keep`.

    Args:
        keep: the fraction to keep of all bytes, or one fraction for each kind of layer (`attention`, `ffn`, …).
        layer_sets: the sets of all targeted layers.

    Raises:
        UserError: `keep` names a kind of layer that is not targeted, or leaves one out.
    """
    if not isinstance(keep, Mapping):
        return [SharedBudget(keep, list(layer_sets))]
    kinds = [_budget_of(layer_set.sites[0].group, keep) for layer_set in layer_sets]
    for name in keep:
        if name not in kinds:
            targeted = {*kinds, *(layer_set.sites[0].group.value for layer_set in layer_sets)}
            raise add_place(unknown("targeted group", name, targeted), "keep")
    for name in set(kinds) - keep.keys():
        raise UserError(f"keep must name every targeted group; '{name}' is missing.")
    members = {
        name: [layer_set for layer_set, kind in zip(layer_sets, kinds, strict=True) if kind == name] for name in keep
    }
    return [SharedBudget(fraction, members[name], f"keep.{name}") for name, fraction in keep.items()]


def _budget_of(group: Group, keep: Mapping[str, float]) -> str:
    """The name in `keep` of the budget for a kind of layer: experts are feed-forwards unless they are named."""
    return Group.FFN.value if group is Group.EXPERTS and group.value not in keep else group.value
