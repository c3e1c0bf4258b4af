"""Upper triangular matrices without the zeros below the diagonal: half the memory of a square.

The columns are divided into panels. A panel has a square on the diagonal, its corner, and the rows above it. The rows
below are zero, and not stored.

Notation: R (n, n) upper triangular; S (n, n) symmetric; X, Y (n, k).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

PANEL = 256
"""Columns of a panel: so many that products are at full speed."""


@dataclass(frozen=True)
class Triangle:
    """An upper triangular matrix in panels.

    Args:
        above: the rows of each panel above its corner. They may be of another dtype than the corners.
        corners: the square of each panel on the diagonal.

    Example:
        >>> R = Triangle.from_dense(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> R.solve_transposed(torch.tensor([[1.0], [3.0]])).tolist()
        [[1.0], [1.0]]
    """

    above: Sequence[Float[Tensor, "_ _"]]
    corners: Sequence[Float[Tensor, "_ _"]]

    @classmethod
    def from_panels(cls, panels: Sequence[Float[Tensor, "_ _"]]) -> "Triangle":
        """The matrix with these panels, of which it has views; see `empty_panels`."""
        starts = [len(panel) - panel.shape[1] for panel in panels]
        split = [(panel[:start], panel[start:]) for panel, start in zip(panels, starts, strict=True)]
        return cls([above for above, _ in split], [corner for _, corner in split])

    @classmethod
    def from_dense(cls, R: Float[Tensor, "n n"]) -> "Triangle":
        """The matrix R, of which it has views above the corners."""
        columns = panel_columns(len(R))
        return cls([R[: own.start, own] for own in columns], [R[own, own].triu() for own in columns])

    def __len__(self) -> int:
        return self.columns[-1].stop

    @cached_property
    def columns(self) -> list[slice]:
        """The columns of each panel."""
        return panel_columns(sum(len(corner) for corner in self.corners))

    @property
    def panels(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The columns of each panel, its rows above the corner, and its corner."""
        return zip(self.columns, self.above, self.corners, strict=True)

    @property
    def is_coarse(self) -> bool:
        """Whether the rows above the corners are of another dtype than the corners."""
        return any(above.dtype != corner.dtype for above, corner in zip(self.above, self.corners, strict=True))

    def dense(self) -> Float[Tensor, "n n"]:
        """R, in the dtype of the corners."""
        return self.part(slice(0, len(self)), slice(0, len(self)))

    def part(self, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """Some rows of some columns, zeros included, in the dtype of the corners."""
        result = self.corners[0].new_zeros(rows.stop - rows.start, columns.stop - columns.start)
        for panel, above, corner in self.panels:
            inside = _common(columns, panel)
            target = result[:, _shifted(inside, columns.start)]
            for height, numbers in ((slice(0, panel.start), above), (panel, corner)):
                some = _common(rows, height)
                values = numbers[_shifted(some, height.start), _shifted(inside, panel.start)]
                target[_shifted(some, rows.start)] = values
        return result

    def to(self, dtype: torch.dtype, above: torch.dtype | None = None) -> "Triangle":
        """The same matrix in another dtype.

        Args:
            dtype: of the corners.
            above: the dtype of the rows above them, which are most of the matrix; None for that of the corners.

        Returns:
            A copy; this matrix itself if it has these dtypes.
        """
        above = dtype if above is None else above
        if all(X.dtype == dtype for X in self.corners) and all(X.dtype == above for X in self.above):
            return self
        return Triangle(_copy(self.above, above), _copy(self.corners, dtype))

    def solve(self, X: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Y with R Y = X."""
        Y = X.clone()
        for own, above, corner in reversed(list(self.panels)):
            Y[own] = torch.linalg.solve_triangular(corner, Y[own], upper=True)
            Y[: own.start] -= above @ Y[own]
        return Y

    def solve_transposed(self, X: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Y with R^T Y = X."""
        Y = X.clone()
        for own, above, corner in self.panels:
            Y[own] -= above.T @ Y[: own.start]
            Y[own] = torch.linalg.solve_triangular(corner.T, Y[own], upper=False)
        return Y


def panel_columns(n: int) -> list[slice]:
    """The columns of each panel of a triangle of n columns."""
    return [slice(start, min(start + PANEL, n)) for start in range(0, n, PANEL)]


def empty_panels(n: int, dtype: torch.dtype, device: torch.device) -> list[Float[Tensor, "_ _"]]:
    """The panels of a triangle, each with its corner below its other rows; their numbers are not set."""
    columns = panel_columns(n)
    sizes = [own.stop * (own.stop - own.start) for own in columns]
    # One block of memory, which the system gets back as a whole when it is freed.
    flat = torch.empty(sum(sizes), dtype=dtype, device=device)
    return [part.view(own.stop, -1) for part, own in zip(flat.split(sizes), columns, strict=True)]


def _copy(parts: Sequence[Float[Tensor, "_ _"]], dtype: torch.dtype) -> list[Float[Tensor, "_ _"]]:
    """Copies in one block of memory."""
    sizes = [part.numel() for part in parts]
    flat = torch.empty(sum(sizes), dtype=dtype, device=parts[0].device)
    return [copy.view(part.shape).copy_(part) for copy, part in zip(flat.split(sizes), parts, strict=True)]


def _common(one: slice, other: slice) -> slice:
    """The numbers in both of two slices; an empty slice within `other` if there are none."""
    start = min(max(one.start, other.start), other.stop)
    return slice(start, max(start, min(one.stop, other.stop)))


def _shifted(some: slice, start: int) -> slice:
    return slice(some.start - start, some.stop - start)
