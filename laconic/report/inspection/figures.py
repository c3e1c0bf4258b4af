"""Pictures of what was found: by part and size, and by layer and kind as tables whose cells are shaded."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from laconic.report.inspection.activity import Blocks, Heads, Inputs
from laconic.report.inspection.weights import IN_BLOCKS, Tally, Weights, together
from laconic.report.plots import COLOURS, FONT_SIZE, INK, plain

WIDTH = 7.2
SHADES = matplotlib.colormaps["Blues"]
DEPTH = matplotlib.colormaps["viridis"]
DARK, LIGHT = "#111111", "#ffffff"
"""Ink on a shaded cell: unlike that of the page, it does not turn with the page's colours."""
MANY = 12
"""Columns from which numbers no longer fit into their cells."""
PER_DECADE = 10
LEAST_ZEROS = 0.005
"""Fraction of zeros from which they are named."""

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


def by_layer(weights: Weights, title: str, value: Callable[[list[Tally]], float | None]) -> Figure:
    """A table of the blocks: `value`, a fraction, of the matrices of each layer and kind."""
    columns = [kind for kind in IN_BLOCKS if kind in weights.kinds]
    cells = {
        (layer, kind): value(tallies)
        for layer in weights.layers
        for kind in columns
        if (tallies := weights.matrices(layer, kind))
    }
    top = max([found for found in cells.values() if found is not None], default=1.0)
    grid = Grid(rows=weights.layers, columns=columns, cells=cells, write=_percent, bounds=(0, max(top, 0.01)))
    return shaded(grid, title, "layer")


def inputs(found: Sequence[Inputs], layers: Sequence[str]) -> Figure:
    """How far the largest input channel of each matrix is above the median one."""
    cells: dict[tuple[str, str], float | None] = {}
    for one in found:
        if one.layer is not None and one.ratio is not None:
            cells[one.layer, one.kind] = max(one.ratio, cells.get((one.layer, one.kind)) or 0.0)
    columns = [kind for kind in IN_BLOCKS if any(kind == column for _, column in cells)]
    grid = Grid(rows=layers, columns=columns, cells=cells, write=_times, bounds=(1, 100), log=True)
    return shaded(grid, "Largest input of a channel, as a multiple of the median channel's", "layer")


def heads(found: Sequence[Heads]) -> Figure:
    """Of each head how alike the other is that is most like it."""
    names: list[str] = []
    for one in found:
        # The second attention of a decoder block is that to what the encoder left.
        names.append(f"{one.layer} cross" if one.layer in names else one.layer)
    most = max(len(one.nearest) for one in found)
    cells: dict[tuple[str, str], float | None] = {
        (name, str(at)): value for name, one in zip(names, found, strict=True) for at, value in enumerate(one.nearest)
    }
    columns = [str(at) for at in range(most)]
    grid = Grid(rows=names, columns=columns, cells=cells, write=_hundredths, bounds=(0, 1))
    return shaded(grid, "Similarity (CKA) of each head with the one most like it, by layer and head", "layer")


def blocks(found: Blocks) -> Figure:
    """What each block changes, and how alike the hidden states are between them."""
    count = len(found.influence)
    figure = Figure(figsize=(WIDTH, max(2.6, 1.2 + 0.22 * count)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    left.barh(range(count), found.influence, color=COLOURS[3], height=0.7)
    left.set_yticks(range(count), found.labels[1:])
    left.invert_yaxis()
    left.set_xlim(0, 1.25 * max(*found.influence, 0.05))
    for at, value in enumerate(found.influence):
        left.annotate(_hundredths(value), (max(value, 0), at), (3, 0), textcoords="offset points", va="center",
                      color=INK, fontsize=_size(count))  # fmt: skip
    left.set_xticks([])
    left.set_ylabel(f"block of {found.stack}" if found.stack != "blocks" else "block", color=INK, fontsize=FONT_SIZE)
    left.set_title("What each block turns: 1 − cosine", color=INK, fontsize=FONT_SIZE, loc="left")
    plain(left)
    left.grid(visible=False)
    left.spines["bottom"].set_visible(False)
    left.tick_params(labelsize=_size(count))
    if found.similarity is None:
        right.set_visible(False)
        return figure
    cells: dict[tuple[str, str], float | None] = {
        (a, b): value
        for a, row in zip(found.labels, found.similarity, strict=True)
        for b, value in zip(found.labels, row, strict=True)
    }
    grid = Grid(rows=found.labels, columns=found.labels, cells=cells, write=_hundredths, bounds=(0, 1))
    _shade(figure, right, grid, numbers=count < 8)
    right.set_title("Similarity (CKA) after each block", color=INK, fontsize=FONT_SIZE, loc="left")
    return figure


def sizes(weights: Weights) -> Figure:
    """One hill for each kind: how its weights are spread over magnitudes, with their median."""
    kinds = weights.kinds
    figure = Figure(figsize=(WIDTH, 1.0 + 0.5 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    low, high = _range(weights)
    for place, kind in enumerate(kinds):
        found = weights.by_kind[kind]
        begins, heights = (np.array(part) for part in found.histogram(PER_DECADE))
        shown = (begins >= low / 2) & (begins <= high)
        hill = 0.9 * heights / max(heights.max(), 1e-12)
        colour = COLOURS[3] if kind in IN_BLOCKS else COLOURS[6]
        middle = begins * 10 ** (0.5 / PER_DECADE)
        axes.fill_between(middle[shown], -place, hill[shown] - place, color=colour, alpha=0.75, linewidth=0)
        median = found.quantile(0.5)
        if median > low:
            axes.plot([median, median], [-place, 0.9 - place], color=COLOURS[0], linewidth=2)
        if found.zeros / found.number > LEAST_ZEROS:
            axes.annotate(f"{found.zeros / found.number:.0%} zero ", (low, 0.3 - place), color=COLOURS[0],
                          fontsize=FONT_SIZE - 1, fontweight="bold")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks([0.15 - place for place in range(len(kinds))], kinds)
    axes.set_xlabel("magnitude |w|; the stroke is the median", color=INK, fontsize=FONT_SIZE)
    axes.set_title("How large the weights of each part are", color=INK, fontsize=FONT_SIZE, loc="left")
    plain(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#999999", alpha=0.35, linewidth=0.8)
    return figure


def spectra(weights: Weights) -> Figure:
    """The singular values of every matrix in the blocks, one panel a kind, one line a layer."""
    kinds = [kind for kind in IN_BLOCKS if kind in weights.kinds]
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    last = max(len(weights.layers) - 1, 1)
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    for panel, kind in zip(panels.flat, kinds, strict=False):
        for at, layer in enumerate(weights.layers):
            for tally in weights.matrices(layer, kind):
                _spectrum(panel, tally, DEPTH(0.9 * at / last))
        panel.set_yscale("log")
        panel.set_ylim(1e-3, 1.3)
        panel.set_xlim(0, 1)
        panel.set_xticks([0.25, 0.5, 0.75])
        panel.set_title(kind, color=INK, fontsize=FONT_SIZE, loc="left")
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        plain(panel)
    scale = ScalarMappable(Normalize(0, last), ListedColormap(DEPTH(np.linspace(0, 0.9, 64))))
    if len(weights.layers) > 1:
        bar = figure.colorbar(scale, ax=panels, aspect=40, shrink=0.6, ticks=[0, last])
        bar.ax.set_yticklabels([_spelled(weights.layers[0]), _spelled(weights.layers[-1])])
        _plain_bar(bar)
    figure.suptitle("Singular values of each matrix", color=INK, fontsize=FONT_SIZE, x=0.02, ha="left")
    figure.supxlabel("singular values so far, of all", color=INK, fontsize=FONT_SIZE)
    figure.supylabel("fraction of the largest", color=INK, fontsize=FONT_SIZE)
    return figure


def shaded(grid: Grid, title: str, rows: str) -> Figure:
    """The grid as a picture of its own."""
    height = 1.1 + (0.32 if len(grid.rows) <= MANY else 0.24) * len(grid.rows)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    _shade(figure, axes, grid, numbers=len(grid.columns) <= MANY)
    axes.set_ylabel(rows, color=INK, fontsize=FONT_SIZE)
    axes.set_title(title, color=INK, fontsize=FONT_SIZE, loc="left")
    return figure


def held_by_a_tenth(tallies: list[Tally]) -> float:
    """How much of the L1 norm the largest tenth of the weights holds."""
    return together(tallies).top_share(0.1)


def rank_used(tallies: list[Tally]) -> float | None:
    """The effective rank over the full one, the mean of the matrices."""
    spectra_of = [tally.spectrum for tally in tallies if tally.spectrum]
    return sum(one.effective / one.full for one in spectra_of) / len(spectra_of) if spectra_of else None


def _spectrum(panel: Axes, tally: Tally, colour: Any) -> None:
    assert tally.spectrum is not None
    values = np.array(tally.spectrum.values)
    if values[0] > 0:
        places = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
        panel.plot(places, np.maximum(values / values[0], 1e-9), color=colour, linewidth=1.4)


def _shade(figure: Figure, axes: Axes, grid: Grid, numbers: bool) -> None:
    matrix, norm = grid.matrix, grid.norm()
    image = axes.imshow(matrix, cmap=SHADES, norm=norm, aspect="auto", interpolation="nearest")
    size = _size(len(grid.rows))
    if numbers:
        for (row, column), value in np.ndenumerate(matrix):
            if math.isfinite(value):
                ink = LIGHT if norm(value) > 0.55 else DARK
                axes.text(column, row, grid.write(value), ha="center", va="center", color=ink, fontsize=size)
    else:
        _plain_bar(figure.colorbar(image, ax=axes, aspect=30))
    step = 1 if len(grid.columns) <= MANY else 4
    axes.set_xticks(range(0, len(grid.columns), step), [_broken(name) for name in grid.columns[::step]])
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    axes.tick_params(colors=INK, length=0, labelsize=size, top=False, labeltop=True, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _plain_bar(bar: Any) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, length=0, labelsize=FONT_SIZE - 2)


def _range(weights: Weights) -> tuple[float, float]:
    """Magnitudes that hold all but the smallest thousandth of what is not zero, in whole powers of ten."""
    found = [one for one in weights.by_kind.values() if one.largest > 0]
    if not found:
        return 1e-3, 1.0
    low = min(one.quantile(min(one.zeros / one.number + 0.01, 1.0)) or one.largest for one in found)
    high = max(one.largest for one in found)
    return 10 ** math.floor(math.log10(max(low, 1e-9))), 10 ** (math.floor(math.log10(high)) + 1)


def _size(rows: int) -> int:
    return FONT_SIZE - 1 if rows <= MANY else FONT_SIZE - 3


def _broken(name: str) -> str:
    return name.replace("attention out", "attention\nout").replace("query-key-value", "query-key-\nvalue")


def _spelled(layer: str) -> str:
    return f"layer {layer}" if layer.isdigit() else layer


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.0995 or value == 0 else f"{100 * value:.1f} %"


def _times(value: float) -> str:
    return f"{value:.0f} ×" if value >= 9.95 else f"{value:.1f} ×"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
