"""Figures of a trade-off, of a model's parts and of a training, as matplotlib `Figure`s without global state."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from laconic.report.evaluation import Point
from laconic.report.tables import MEGABYTE

# The colour-blind safe palette of Okabe & Ito, without yellow, which is too pale for lines.
COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
FONT_SIZE = 11
MIN_TEXT_PIXELS = 11
"""Least size of text in a page; a picture that would be smaller on a narrow screen scrolls in its box."""
WIDE, NARROW = 7.2, 4.6
"""Inches; text of the narrow width can be read on a phone without scrolling."""
SHORT_AXIS = 1.6
"""The number of decades below which a logarithmic axis also has marks between the powers of ten."""


def trade_off(points: Sequence[Point], quality: str, width: float = WIDE) -> Figure:
    """KL on a logarithmic axis against the fraction of bytes kept, one line for each method, named at its left end.

    Args:
        points: compressed models; points of the same method are joined by a line.
        quality: what `Point.kl` measures, for the title.
        width: inches.
    """
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    axes = figure.subplots()
    methods = dict.fromkeys(point.method for point in points)
    lines = {name: sorted((p for p in points if p.method == name), key=lambda p: p.kept) for name in methods}
    for index, line in enumerate(lines.values()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot([p.kept for p in line], [p.kl for p in line], color=colour, marker=marker, linewidth=2, markersize=6)
    if any(point.kl > 0 for point in points):
        axes.set_yscale("log")
    _set_limits(axes, points, 0.42 * (WIDE / width) ** 2)
    _label_lines(axes, lines)
    # The range below zero is only for names.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: "" if share < 0 else f"{share:.0%}"))
    label_axes(axes, f"{quality}; lower is better", x="bytes kept of the compressed matrices")
    style_axes(axes)
    return figure


def parts(sizes: Mapping[str, int], width: float = WIDE) -> Figure:
    """Bytes by part of a model, as bars with their sizes.

    Args:
        sizes: bytes by the name of the part.
        width: inches.
    """
    figure = Figure(figsize=(width, 0.6 + 0.45 * len(sizes)), layout="constrained")
    axes = figure.subplots()
    names = list(sizes)[::-1]
    values = [sizes[name] / MEGABYTE for name in names]
    bars = axes.barh(names, values, color=COLOURS[3])
    axes.bar_label(
        bars, [f"{value:,.{1 if value >= 1 else 2}f} MB" for value in values], padding=4, color=INK, fontsize=FONT_SIZE
    )
    axes.set_xlim(0, (1 + 0.18 * (WIDE / width) ** 2) * max(values))
    axes.set_xticks([])
    label_axes(axes, "Bytes of each part in a file")
    style_axes(axes, grid=None)
    axes.spines["bottom"].set_visible(False)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and SVG.

    Args:
        figure: the figure.
        stem: path without its ending.
    """
    stem.with_suffix(".png").write_bytes(png(figure))
    stem.with_suffix(".svg").write_text(standalone_svg(figure))


def inline_svg(figure: Figure) -> str:
    """The figure as an element of an HTML page, in the colour of the page's text.

    Its `min-width` keeps its smallest text at `MIN_TEXT_PIXELS`, so it needs a box that scrolls.

    Args:
        figure: the figure; parts in the colour `INK` take the colour of the page's text.
    """
    svg = standalone_svg(figure, transparent=True)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    sizes = map(float, re.findall(r"<text[^>]*?font(?:-size)?: (?:[a-z]+ |\d+ )*([\d.]+)px", svg))
    width = 72 * figure.get_figwidth() * MIN_TEXT_PIXELS / min(sizes, default=FONT_SIZE)
    return svg.replace("<svg", f'<svg style="min-width: {math.ceil(width)}px"', 1)


def standalone_svg(figure: Figure, *, transparent: bool = False) -> str:
    """The figure as the content of an SVG file.

    Args:
        figure: the figure.
        transparent: whether to leave out the white background.
    """
    buffer = io.StringIO()
    # Keep text as text elements, and make the output deterministic.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "laconic"}):
        figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None})
    return buffer.getvalue()


def _set_limits(axes: Axes, points: Sequence[Point], margin: float) -> None:
    """Set limits with room for names on the left.

    Args:
        axes: the axes.
        points: the points that are drawn.
        margin: the room on the left, as a fraction of the range of the points.
    """
    fractions = [point.kept for point in points]
    span = max(max(fractions) - min(fractions), 0.1)
    axes.set_xlim(min(fractions) - margin * span, max(fractions) + 0.06 * span)
    # Zero cannot be shown on a logarithmic axis; without positive values, use 1 for the limits.
    kls = [point.kl for point in points if point.kl > 0] or [1.0]
    axes.set_ylim(min(kls) / 1.6, max(kls) * 1.6)
    decades = math.log10(max(kls) / min(kls))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < SHORT_AXIS else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label_lines(axes: Axes, lines: Mapping[str, Sequence[Point]]) -> None:
    """Write each method's name left of its smallest model; names that would overlap are moved apart."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    order = list(lines)
    upwards = sorted(order, key=lambda name: lines[name][0].kl)
    heights = [math.log(max(lines[name][0].kl, math.exp(low))) for name in upwards]
    for name, height in zip(upwards, _spread_labels(heights, 0.055 * (high - low), high), strict=True):
        axes.annotate(
            name,
            xy=(lines[name][0].kept, math.exp(height)),
            xytext=(-10, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=COLOURS[order.index(name) % len(COLOURS)],
            fontsize=FONT_SIZE,
            fontweight="bold",
        )


def _spread_labels(heights: Sequence[float], least: float, highest: float) -> list[float]:
    """Rising heights, moved to be at least `least` apart and at most `highest`."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + least) if moved else height)
    above = highest + least
    for index in reversed(range(len(moved))):
        above = moved[index] = min(moved[index], above - least)
    return moved


def escape_mathtext(text: str) -> str:
    """Text for matplotlib, which reads TeX between dollars and leaves names that begin with a _ out of legends.

    Example:
        >>> escape_mathtext("$5")
        '\\\\$5'
    """
    return ("" if not text.startswith("_") else " ") + text.replace("$", r"\$")


def label_axes(axes: Axes, title: str, *, x: str = "", y: str = "") -> None:
    """Write the title and the labels of the axes.

    Args:
        axes: the axes.
        title: the title above the axes, on the left.
        x: label of the horizontal axis.
        y: label of the vertical axis.
    """
    axes.set_title(title, color=INK, fontsize=FONT_SIZE, loc="left")
    axes.set_xlabel(x, color=INK, fontsize=FONT_SIZE)
    axes.set_ylabel(y, color=INK, fontsize=FONT_SIZE)


def style_axes(axes: Axes, grid: Literal["x", "y"] | None = "y") -> None:
    """Remove the frame, and draw faint grid lines.

    Args:
        axes: the axes.
        grid: the axis whose marks have lines: "y" for horizontal ones; None for no lines.
    """
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, which="both", length=0, labelsize=FONT_SIZE - 1)
    if grid is not None:
        axes.grid(visible=True, axis=grid, which="major", color="#999999", alpha=0.35, linewidth=0.8)


def curves(history: Sequence[Mapping[str, Any]], name: str) -> Figure:
    """The losses of a training: of each batch, and of held-out rows. A ring marks the lowest held-out loss.

    Args:
        history: lines of the training; each has a `step`, and `loss` or `eval_loss`.
        name: the name of the training, for the title.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    batches, held_out = (
        [(line["step"], line[key]) for line in history if line.get(key) is not None] for key in ("loss", "eval_loss")
    )
    if batches:
        axes.plot(*zip(*batches, strict=True), color=COLOURS[-1], linewidth=1, alpha=0.8)
        _label_curve(axes, max(batches, key=lambda point: point[1]), "training batches", COLOURS[-1])
    # Without held-out losses, draw an empty line.
    held_out = held_out or [(0, float("nan"))]
    axes.plot(*zip(*held_out, strict=True), color=COLOURS[3], marker="o", linewidth=2, markersize=5)
    _label_curve(axes, held_out[-1], "held-out rows", COLOURS[3])
    best = min(held_out, key=lambda point: point[1])
    axes.plot(*best, marker="o", markersize=11, markerfacecolor="none", markeredgecolor=COLOURS[0], markeredgewidth=2)
    axes.annotate(
        f"kept: {best[1]:.3g}", best, (0, -16), textcoords="offset points", ha="center", color=COLOURS[0],
        fontsize=FONT_SIZE, fontweight="bold",
    )  # fmt: skip
    axes.margins(y=0.18)
    axes.set_xlim(right=1.2 * max(held_out[-1][0], 1))
    label_axes(axes, f"{name}: loss", x="updates")
    style_axes(axes)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _label_curve(axes: Axes, point: tuple[float, float], name: str, colour: str) -> None:
    axes.annotate(
        name,
        point,
        (8, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=FONT_SIZE,
        fontweight="bold",
    )
