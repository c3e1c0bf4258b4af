"""Heatmaps of measurements by layer: matrices, their inputs, heads and blocks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from laconic.report.inspection.activity import BlockSimilarity, HeadSimilarity, InputStats
from laconic.report.inspection.weights import IN_BLOCKS, ModelWeights, WeightStats, combine
from laconic.report.plots import COLOURS, FONT_SIZE, INK, WIDE, style_axes

SHADES = matplotlib.colormaps["Blues"]
DARK, LIGHT = "#111111", "#ffffff"
"""Colours of text on a cell; they are the same in a light and in a dark page."""
MAX_NUMBERED = 12
"""The largest numbers of columns and rows for which numbers in cells have full size."""

Cells = Mapping[tuple[str, str], float | None]


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Values of a heatmap.

    Args:
        rows: labels.
        columns: labels.
        cells: values by row and column; None and missing ones are left blank.
        write: formats a value.
        bounds: values of the lightest and the darkest colour; None for the least and the largest.
        log: whether colours are logarithmic.
    """

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


def heatmap_figure(grid: Heatmap, title: str, rows: str) -> Figure:
    """A heatmap as a figure.

    Args:
        grid: its values.
        title: the title of the figure.
        rows: label of the rows.
    """
    height = 1.1 + (0.32 if len(grid.rows) <= MAX_NUMBERED else 0.24) * len(grid.rows)
    figure = Figure(figsize=(WIDE, height), layout="constrained")
    axes = figure.subplots()
    draw_heatmap(figure, axes, grid, numbers=len(grid.columns) <= MAX_NUMBERED)
    axes.set_ylabel(rows, color=INK, fontsize=FONT_SIZE)
    axes.set_title(title, color=INK, fontsize=FONT_SIZE, loc="left")
    return figure


def draw_heatmap(figure: Figure, axes: Axes, grid: Heatmap, numbers: bool) -> None:
    """Draw a heatmap on axes.

    Args:
        figure: the figure that contains the axes.
        axes: to draw on.
        grid: values.
        numbers: whether cells have numbers; otherwise there is a colour bar.
    """
    matrix, norm = grid.matrix, grid.norm()
    image = axes.imshow(matrix, cmap=SHADES, norm=norm, aspect="auto", interpolation="nearest")
    size = text_size(len(grid.rows))
    if numbers:
        for (row, column), value in np.ndenumerate(matrix):
            if math.isfinite(value):
                ink = LIGHT if norm(value) > 0.55 else DARK
                axes.text(column, row, grid.write(value), ha="center", va="center", color=ink, fontsize=size)
    else:
        style_colorbar(figure.colorbar(image, ax=axes, aspect=30))
    step = 1 if len(grid.columns) <= MAX_NUMBERED else 4
    axes.set_xticks(range(0, len(grid.columns), step), [_wrap(name) for name in grid.columns[::step]])
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    axes.tick_params(colors=INK, length=0, labelsize=size, top=False, labeltop=True, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def style_colorbar(bar: Colorbar) -> None:
    """Remove the frame and the ticks of a colour bar."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, length=0, labelsize=FONT_SIZE - 2)


def text_size(rows: int) -> int:
    """Font size for so many rows, in points."""
    return FONT_SIZE - 1 if rows <= MAX_NUMBERED else FONT_SIZE - 3


def _wrap(name: str) -> str:
    return name.replace("attention out", "attention\nout").replace("query-key-value", "query-key-\nvalue")


def layer_heatmap(weights: ModelWeights, title: str, value: Callable[[list[WeightStats]], float | None]) -> Figure:
    """A heatmap of the blocks by layer and kind of matrix.

    Args:
        weights: the statistics of the model.
        title: the title of the figure.
        value: a fraction, for the matrices of one layer and kind.
    """
    columns = [kind for kind in IN_BLOCKS if kind in weights.kinds]
    cells = {
        (layer, kind): value(tallies)
        for layer in weights.layers
        for kind in columns
        if (tallies := weights.matrices(layer, kind))
    }
    top = max([found for found in cells.values() if found is not None], default=1.0)
    grid = Heatmap(rows=weights.layers, columns=columns, cells=cells, write=_percent, bounds=(0, max(top, 0.01)))
    return heatmap_figure(grid, title, "layer")


def outlier_heatmap(found: Sequence[InputStats], layers: Sequence[str]) -> Figure:
    """A heatmap of the largest input channel of each matrix, as a multiple of the median channel."""
    cells: dict[tuple[str, str], float | None] = {}
    for matrix in found:
        if matrix.layer is not None and matrix.ratio is not None:
            cells[matrix.layer, matrix.kind] = max(matrix.ratio, cells.get((matrix.layer, matrix.kind)) or 0.0)
    columns = [kind for kind in IN_BLOCKS if any(kind == column for _, column in cells)]
    grid = Heatmap(rows=layers, columns=columns, cells=cells, write=_times, bounds=(1, 100), log=True)
    return heatmap_figure(grid, "Largest input of a channel, as a multiple of the median channel's", "layer")


def head_heatmap(found: Sequence[HeadSimilarity]) -> Figure:
    """A heatmap of the similarity of each head with the most similar other head of its layer."""
    names: list[str] = []
    for attention in found:
        # The second attention of a decoder block is the cross-attention.
        names.append(f"{attention.layer} cross" if attention.layer in names else attention.layer)
    most = max(len(attention.nearest) for attention in found)
    cells: dict[tuple[str, str], float | None] = {
        (name, str(at)): value
        for name, attention in zip(names, found, strict=True)
        for at, value in enumerate(attention.nearest)
    }
    columns = [str(at) for at in range(most)]
    grid = Heatmap(rows=names, columns=columns, cells=cells, write=_hundredths, bounds=(0, 1))
    return heatmap_figure(grid, "Similarity (CKA) of each head with the one most like it, by layer and head", "layer")


def block_figure(found: BlockSimilarity) -> Figure:
    """Bars of the influence of each block, and a heatmap of how similar the hidden states after the blocks are."""
    count = len(found.influence)
    figure = Figure(figsize=(WIDE, max(2.6, 1.2 + 0.22 * count)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    left.barh(range(count), found.influence, color=COLOURS[3], height=0.7)
    left.set_yticks(range(count), found.labels[1:])
    left.invert_yaxis()
    left.set_xlim(0, 1.25 * max(*found.influence, 0.05))
    for at, value in enumerate(found.influence):
        left.annotate(_hundredths(value), (max(value, 0), at), (3, 0), textcoords="offset points", va="center",
                      color=INK, fontsize=text_size(count))  # fmt: skip
    left.set_xticks([])
    left.set_ylabel(f"block of {found.stack}" if found.stack != "blocks" else "block", color=INK, fontsize=FONT_SIZE)
    left.set_title("What each block turns: 1 − cosine", color=INK, fontsize=FONT_SIZE, loc="left")
    style_axes(left)
    left.grid(visible=False)
    left.spines["bottom"].set_visible(False)
    left.tick_params(labelsize=text_size(count))
    if found.similarity is None:
        right.set_visible(False)
        return figure
    cells: dict[tuple[str, str], float | None] = {
        (a, b): value
        for a, row in zip(found.labels, found.similarity, strict=True)
        for b, value in zip(found.labels, row, strict=True)
    }
    grid = Heatmap(rows=found.labels, columns=found.labels, cells=cells, write=_hundredths, bounds=(0, 1))
    draw_heatmap(figure, right, grid, numbers=count < 8)
    right.set_title("Similarity (CKA) after each block", color=INK, fontsize=FONT_SIZE, loc="left")
    return figure


def top_tenth_share(tallies: list[WeightStats]) -> float:
    """The share of the L1 norm in the largest tenth of the weights."""
    return combine(tallies).top_share(0.1)


def relative_rank(tallies: list[WeightStats]) -> float | None:
    """The effective rank as a fraction of the full rank, the mean over matrices."""
    spectra_of = [tally.spectrum for tally in tallies if tally.spectrum]
    return sum(spectrum.effective / spectrum.full for spectrum in spectra_of) / len(spectra_of) if spectra_of else None


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.0995 or value == 0 else f"{100 * value:.1f} %"


def _times(value: float) -> str:
    return f"{value:.0f} ×" if value >= 9.95 else f"{value:.1f} ×"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
