"""Figures of distributions: magnitudes of weights by part, and singular values by layer."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from laconic.report.inspection.heatmaps import style_colorbar
from laconic.report.inspection.weights import IN_BLOCKS, ModelWeights, WeightStats
from laconic.report.plots import COLOURS, FONT_SIZE, INK, WIDE, style_axes

DEPTH = matplotlib.colormaps["viridis"]
PER_DECADE = 10
LEAST_ZEROS = 0.005
"""Fraction of zeros from which the figure names it."""


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
    axes.set_xlabel("magnitude |w|; the line is the median", color=INK, fontsize=FONT_SIZE)
    axes.set_title("How large the weights of each part are", color=INK, fontsize=FONT_SIZE, loc="left")
    style_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#999999", alpha=0.35, linewidth=0.8)
    return figure


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
        style_axes(panel)
    scale = ScalarMappable(Normalize(0, last), ListedColormap(DEPTH(np.linspace(0, 0.9, 64))))
    if len(weights.layers) > 1:
        bar = figure.colorbar(scale, ax=panels, aspect=40, shrink=0.6, ticks=[0, last])
        bar.ax.set_yticklabels([_layer_name(weights.layers[0]), _layer_name(weights.layers[-1])])
        style_colorbar(bar)
    figure.suptitle("Singular values of each matrix", color=INK, fontsize=FONT_SIZE, x=0.02, ha="left")
    figure.supxlabel("share of the singular values, largest first", color=INK, fontsize=FONT_SIZE)
    figure.supylabel("fraction of the largest", color=INK, fontsize=FONT_SIZE)
    return figure


def _spectrum(panel: Axes, tally: WeightStats, colour: Any) -> None:
    assert tally.spectrum is not None
    values = np.array(tally.spectrum.values)
    if values[0] > 0:
        places = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
        panel.plot(places, np.maximum(values / values[0], 1e-9), color=colour, linewidth=1.4)


def _range(weights: ModelWeights) -> tuple[float, float]:
    """Powers of ten between which nearly all non-zero magnitudes are."""
    found = [magnitudes for magnitudes in weights.by_kind.values() if magnitudes.largest > 0]
    if not found:
        return 1e-3, 1.0
    low = min(
        magnitudes.quantile(min(magnitudes.zeros / magnitudes.number + 0.01, 1.0)) or magnitudes.largest
        for magnitudes in found
    )
    high = max(magnitudes.largest for magnitudes in found)
    return 10 ** math.floor(math.log10(max(low, 1e-9))), 10 ** (math.floor(math.log10(high)) + 1)


def _layer_name(layer: str) -> str:
    return f"layer {layer}" if layer.isdigit() else layer
