"""Figures of an inspection: distributions of weights, and heatmaps of matrices, inputs, heads and blocks by layer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from laconic.report.inspection.activity import BlockSimilarity, HeadSimilarity, InputStats
from laconic.report.inspection.weights import IN_BLOCKS, ModelWeights, WeightStats
from laconic.report.plots import COLOURS, FONT_SIZE, INK, WIDE, label_axes, style_axes

DEPTH = matplotlib.colormaps["viridis"]
SHADES = matplotlib.colormaps["Blues"]
DARK, LIGHT = "#111111", "#ffffff"
"""Colours of text on a cell; they are the same in a light and in a dark page."""
MAX_NUMBERED = 12
"""The largest numbers of columns and rows for which numbers in cells have full size."""
PER_DECADE = 10
"""Bins of a histogram per power of ten."""
LEAST_ZEROS = 0.005
"""The least fraction of zeros that the figure states."""


def magnitude_figure(weights: ModelWeights, width: float = WIDE) -> Figure:
    """A histogram of |w| for each kind of weights, with the median.

    Args:
        weights: the statistics of a model.
        width: the width of the figure in inches.
    """
    kinds = weights.kinds
    figure = Figure(figsize=(width, 1.0 + 0.5 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    low, high = _range(weights)
    for row, kind in enumerate(kinds):
        magnitudes = weights.by_kind[kind]
        begins, heights = (np.array(part) for part in magnitudes.histogram(PER_DECADE))
        shown = (begins >= low / 2) & (begins <= high)
        heights = 0.9 * heights / max(heights.max(), 1e-12)
        colour = COLOURS[3] if kind in IN_BLOCKS else COLOURS[6]
        middle = begins * 10 ** (0.5 / PER_DECADE)
        axes.fill_between(middle[shown], -row, heights[shown] - row, color=colour, alpha=0.75, linewidth=0)
        median = magnitudes.quantile(0.5)
        if median > low:
            axes.plot([median, median], [-row, 0.9 - row], color=COLOURS[0], linewidth=2)
        if magnitudes.zeros / magnitudes.number > LEAST_ZEROS:
            axes.annotate(f"{magnitudes.zeros / magnitudes.number:.0%} zero ", (low, 0.3 - row), color=COLOURS[0],
                          fontsize=FONT_SIZE - 1, fontweight="bold")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks([0.15 - row for row in range(len(kinds))], kinds)
    label_axes(axes, "Magnitudes of the weights of each part", x="magnitude |w|; the line is the median")
    style_axes(axes, grid="x")
    return figure


def _range(weights: ModelWeights) -> tuple[float, float]:
    """Powers of ten between which nearly all non-zero magnitudes are."""
    nonzero = [magnitudes for magnitudes in weights.by_kind.values() if magnitudes.largest > 0]
    if not nonzero:
        return 1e-3, 1.0
    low = min(
        magnitudes.quantile(min(magnitudes.zeros / magnitudes.number + 0.01, 1.0)) or magnitudes.largest
        for magnitudes in nonzero
    )
    high = max(magnitudes.largest for magnitudes in nonzero)
    return 10 ** math.floor(math.log10(max(low, 1e-9))), 10 ** (math.floor(math.log10(high)) + 1)


def spectrum_figure(weights: ModelWeights, width: float = WIDE) -> Figure:
    """The singular values of every matrix in the blocks, one panel for each kind, one line for each layer.

    Args:
        weights: the statistics of a model.
        width: the width of the figure in inches; a narrow one has two panels beside each other.
    """
    kinds = [kind for kind in IN_BLOCKS if kind in weights.kinds]
    columns = min(3 if width >= WIDE else 2, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(width, 0.5 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    last = max(len(weights.layers) - 1, 1)
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    for panel, kind in zip(panels.flat, kinds, strict=False):
        for depth, layer in enumerate(weights.layers):
            for tally in weights.matrices(layer, kind):
                values = np.array(tally.spectrum.values if tally.spectrum else ())
                if values.any():
                    places = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
                    heights = np.maximum(values / values[0], 1e-9)
                    panel.plot(places, heights, color=DEPTH(0.9 * depth / last), linewidth=1.4)
        panel.set_yscale("log")
        panel.set_ylim(1e-3, 1.3)
        panel.set_xlim(0, 1)
        panel.set_xticks([0.25, 0.5, 0.75])
        label_axes(panel, kind)
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        style_axes(panel)
    if len(weights.layers) > 1:
        scale = ScalarMappable(Normalize(0, last), ListedColormap(DEPTH(np.linspace(0, 0.9, 64))))
        bar = figure.colorbar(scale, ax=panels, aspect=40, shrink=0.6, ticks=[0, last])
        ends = weights.layers[0], weights.layers[-1]
        bar.ax.set_yticklabels([f"layer {layer}" if layer.isdigit() else layer for layer in ends])
        _style_colorbar(bar)
    figure.suptitle("Singular values of each matrix", color=INK, fontsize=FONT_SIZE, x=0.02, ha="left")
    figure.supxlabel("share of the singular values, largest first", color=INK, fontsize=FONT_SIZE)
    figure.supylabel("fraction of the largest", color=INK, fontsize=FONT_SIZE)
    return figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Heatmap:
    """Values of a heatmap.

    Args:
        rows: labels.
        columns: labels.
        values: (rows, columns) values; NaN is left blank.
        write: formats a value.
        norm: maps values to colours.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    write: Callable[[float], str]
    norm: Normalize

    def figure(self, title: str) -> Figure:
        """The heatmap as a figure whose rows are layers."""
        height = 1.1 + (0.32 if len(self.rows) <= MAX_NUMBERED else 0.24) * len(self.rows)
        figure = Figure(figsize=(WIDE, height), layout="constrained")
        axes = figure.subplots()
        self.draw(figure, axes, numbers=len(self.columns) <= MAX_NUMBERED)
        label_axes(axes, title, y="layer")
        return figure

    def draw(self, figure: Figure, axes: Axes, numbers: bool) -> None:
        """Draw the heatmap on axes.

        Args:
            figure: the figure that contains the axes.
            axes: to draw on.
            numbers: whether cells have numbers; otherwise there is a colour bar.
        """
        image = axes.imshow(self.values, cmap=SHADES, norm=self.norm, aspect="auto", interpolation="nearest")
        size = _text_size(len(self.rows))
        if numbers:
            for (row, column), value in np.ndenumerate(self.values):
                if math.isfinite(value):
                    ink = LIGHT if self.norm(value) > 0.55 else DARK
                    axes.text(column, row, self.write(value), ha="center", va="center", color=ink, fontsize=size)
        else:
            _style_colorbar(figure.colorbar(image, ax=axes, aspect=30))
        step = 1 if len(self.columns) <= MAX_NUMBERED else 4
        axes.set_xticks(range(0, len(self.columns), step), [_wrap(name) for name in self.columns[::step]])
        axes.set_yticks(range(len(self.rows)), self.rows)
        axes.tick_params(colors=INK, length=0, labelsize=size, top=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)


def _style_colorbar(bar: Colorbar) -> None:
    """Remove the frame and the ticks of a colour bar."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, length=0, labelsize=FONT_SIZE - 2)


def _text_size(rows: int) -> int:
    """The font size of a heatmap with this number of rows, in points."""
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
    cells = [[weights.matrices(layer, kind) for kind in columns] for layer in weights.layers]
    values = np.array([[value(tallies) if tallies else None for tallies in row] for row in cells], dtype=float)
    norm = Normalize(0, values.max(initial=0.01, where=np.isfinite(values)))
    return Heatmap(rows=weights.layers, columns=columns, values=values, write=_percent, norm=norm).figure(title)


def outlier_heatmap(inputs: Sequence[InputStats], layers: Sequence[str]) -> Figure:
    """A heatmap of the largest input channel of each matrix, as a multiple of the median channel."""
    ratios: dict[tuple[str | None, str], float] = {}
    for matrix in inputs:
        if matrix.layer is not None and matrix.ratio is not None:
            key = matrix.layer, matrix.kind
            ratios[key] = max(matrix.ratio, ratios.get(key, 0.0))
    columns = [kind for kind in IN_BLOCKS if any(kind == column for _, column in ratios)]
    values = np.array([[ratios.get((layer, kind)) for kind in columns] for layer in layers], dtype=float)
    grid = Heatmap(rows=layers, columns=columns, values=values, write=_times, norm=LogNorm(1, 100))
    return grid.figure("Largest input of a channel, as a multiple of the median channel's")


def head_heatmap(attentions: Sequence[HeadSimilarity]) -> Figure:
    """A heatmap of the similarity of each head with the most similar other head of its layer."""
    names: list[str] = []
    for attention in attentions:
        # The second attention of a decoder block is the cross-attention.
        names.append(f"{attention.layer} cross" if attention.layer in names else attention.layer)
    most = max(len(attention.nearest) for attention in attentions)
    rows = [[*attention.nearest, *[None] * (most - len(attention.nearest))] for attention in attentions]
    columns = [str(head) for head in range(most)]
    grid = Heatmap(
        rows=names, columns=columns, values=np.array(rows, dtype=float), write=_hundredths, norm=Normalize(0, 1)
    )
    return grid.figure("Similarity (CKA) of each head with the one most like it, by layer and head")


def block_figure(blocks: BlockSimilarity) -> Figure:
    """Bars of the influence of each block, and a heatmap of how similar the hidden states after the blocks are."""
    count = len(blocks.influence)
    figure = Figure(figsize=(WIDE, max(2.6, 1.2 + 0.22 * count)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    left.barh(range(count), blocks.influence, color=COLOURS[3], height=0.7)
    left.set_yticks(range(count), blocks.labels[1:])
    left.invert_yaxis()
    left.set_xlim(0, 1.25 * max(*blocks.influence, 0.05))
    for index, value in enumerate(blocks.influence):
        left.annotate(_hundredths(value), (max(value, 0), index), (3, 0), textcoords="offset points", va="center",
                      color=INK, fontsize=_text_size(count))  # fmt: skip
    left.set_xticks([])
    label_axes(
        left,
        "Change by each block: 1 − cosine",
        y=f"block of {blocks.stack}" if blocks.stack != "blocks" else "block",
    )
    style_axes(left, grid=None)
    left.spines["bottom"].set_visible(False)
    left.tick_params(labelsize=_text_size(count))
    if blocks.similarity is None:
        right.set_visible(False)
        return figure
    values, norm = np.array(blocks.similarity, dtype=float), Normalize(0, 1)
    grid = Heatmap(rows=blocks.labels, columns=blocks.labels, values=values, write=_hundredths, norm=norm)
    grid.draw(figure, right, numbers=count < 8)
    label_axes(right, "Similarity (CKA) after each block")
    return figure


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.0995 or value == 0 else f"{100 * value:.1f} %"


def _times(value: float) -> str:
    return f"{value:.0f} ×" if value >= 9.95 else f"{value:.1f} ×"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
