"""Zeros that an earlier step chose stay zeros: a method that would fill them is refused before any work."""

from collections.abc import Sequence

from laconic.allocate import Plan
from laconic.compress.planning import solved
from laconic.compress.solve_groups import TiedGroup
from laconic.errors import UserError
from laconic.methods import Method


def check_zeros_stay(of: Sequence[TiedGroup], method: Method, plan: Plan | None) -> None:
    """Look at what each unit would be solved by.

    Raises:
        UserError: a layer is pruned, and its method does not keep the zeros.
    """
    for unit, chosen in solved(of, method, plan):
        for site in unit.sites:
            if not chosen.keeps_support and site.support is not None:
                raise UserError(
                    f"The layer '{site.name}' is pruned, and '{chosen.name}' would fill its zeros; "
                    f"prune after '{chosen.name}', or choose other targets."
                )
