"""Codes are the last word on a matrix: a step that would make another of it is refused before any work."""

from collections.abc import Sequence

from laconic.compress.pricing import every_unit
from laconic.compress.solve_groups import TiedGroup
from laconic.errors import UserError
from laconic.formats import Coded, CodedEmbedding


def check_not_coded(of: Sequence[TiedGroup]) -> None:
    """Look at every matrix that is targeted.

    Raises:
        UserError: one of them is quantized.
    """
    for unit in every_unit(of):
        for site in unit.sites:
            if isinstance(site.module, (Coded, CodedEmbedding)):
                raise UserError(
                    f"The layer '{site.name}' is quantized already; put this step before the one that quantizes, "
                    f"or choose other targets."
                )
