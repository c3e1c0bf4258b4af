"""The rows of input projections, and the module attributes, that belong to heads or channels."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from laconic.model.site import Site


@dataclass(frozen=True)
class InputProjection:
    """An input projection, with rows of every part.

    Args:
        site: the projection.
        each: the rows of one part in each of the matrices that are stacked by rows in it. Further rows at the end
            belong to all parts, such as those of a key that all heads share.
    """

    site: Site
    each: tuple[int, ...]

    def split(self, tensor: Tensor, count: int) -> tuple[list[Tensor], Tensor]:
        """Split a tensor with the rows of the projection by parts.

        Args:
            tensor: its weight or bias.
            count: the number of parts.

        Returns:
            For each matrix the rows of its parts, (count, rows of a part, …), and the rows of all parts.
        """
        *stacked, rest = tensor.split([*(rows * count for rows in self.each), len(tensor) - count * sum(self.each)])
        return [rows.unflatten(0, (count, -1)) for rows in stacked], rest


class SizeAttribute(NamedTuple):
    """A module attribute that counts parts.

    Args:
        module: the module.
        attribute: its name; "config.NAME" is a value of its configuration.
        each: the number that one part adds to it.
    """

    module: nn.Module
    attribute: str
    each: int
