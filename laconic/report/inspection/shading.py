"""Tables whose cells are shaded by their values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from laconic.report.plots import FONT_SIZE, INK

WIDTH = 7.2
SHADES = matplotlib.colormaps["Blues"]
DARK, LIGHT = "#111111", "#ffffff"
"""Ink on a shaded cell: unlike that of the page, it does not turn with the page's colours."""
MANY = 12
"""Columns from which numbers no longer fit into their cells."""

Cells = Mapping[tuple[str, str], float | None]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is shaded: values by row and column, how they are written, and what the shades stand for."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Cells
    write: Callable[[float], str]
    bounds: tuple[float, float] | None = None
    log: bool = False

    @property
    def matrix(self) -> np.ndarray:
        values = [[self.cells.get((row, column)) for column in self.columns] for row in self.rows]
        return np.array([[math.nan if value is None else value for value in line] for line in values])

    def norm(self) -> Normalize:
        found = self.matrix[np.isfinite(self.matrix)]
        low, high = self.bounds or (float(found.min(initial=math.inf)), float(found.max(initial=-math.inf)))
        if not math.isfinite(low):
            low, high = 0.0, 1.0
        if self.log:
            return LogNorm(max(low, 1e-9), max(high, 1.0001 * low, 1e-8))
        return Normalize(low, max(high, low + 1e-9))


def shaded(grid: Grid, title: str, rows: str) -> Figure:
    """The grid as a picture of its own."""
    height = 1.1 + (0.32 if len(grid.rows) <= MANY else 0.24) * len(grid.rows)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    shade(figure, axes, grid, numbers=len(grid.columns) <= MANY)
    axes.set_ylabel(rows, color=INK, fontsize=FONT_SIZE)
    axes.set_title(title, color=INK, fontsize=FONT_SIZE, loc="left")
    return figure


def shade(figure: Figure, axes: Axes, grid: Grid, numbers: bool) -> None:
    """The grid on `axes`, with its values in the cells or a bar beside them."""
    matrix, norm = grid.matrix, grid.norm()
    image = axes.imshow(matrix, cmap=SHADES, norm=norm, aspect="auto", interpolation="nearest")
    size = text_size(len(grid.rows))
    if numbers:
        for (row, column), value in np.ndenumerate(matrix):
            if math.isfinite(value):
                ink = LIGHT if norm(value) > 0.55 else DARK
                axes.text(column, row, grid.write(value), ha="center", va="center", color=ink, fontsize=size)
    else:
        plain_bar(figure.colorbar(image, ax=axes, aspect=30))
    step = 1 if len(grid.columns) <= MANY else 4
    axes.set_xticks(range(0, len(grid.columns), step), [_broken(name) for name in grid.columns[::step]])
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    axes.tick_params(colors=INK, length=0, labelsize=size, top=False, labeltop=True, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def plain_bar(bar: Colorbar) -> None:
    """A colour bar without lines that say nothing."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, length=0, labelsize=FONT_SIZE - 2)


def text_size(rows: int) -> int:
    """Points of the text of so many rows."""
    return FONT_SIZE - 1 if rows <= MANY else FONT_SIZE - 3


def _broken(name: str) -> str:
    return name.replace("attention out", "attention\nout").replace("query-key-value", "query-key-\nvalue")
