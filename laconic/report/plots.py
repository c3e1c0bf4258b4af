"""Pictures of a trade-off and of a model's parts; each is a matplotlib `Figure` that no global state knows of."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from laconic.report.points import MEGABYTE, Point

# Okabe & Ito's palette, which people of every colour vision tell apart, without its yellow, too pale for a line.
COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#222222"
FONT_SIZE = 11
SHORT_AXIS = 1.6
"""Decades below which powers of ten alone are too few marks."""


def trade_off(points: Sequence[Point], quality: str) -> Figure:
    """KL (log axis, lower is better) against the fraction of bytes really kept: one line a method, named at its end."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    lines = {name: sorted((p for p in points if p.method == name), key=lambda p: p.kept) for name in _names(points)}
    for index, line in enumerate(lines.values()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot([p.kept for p in line], [p.kl for p in line], color=colour, marker=marker, linewidth=2, markersize=6)
    if any(point.kl > 0 for point in points):
        axes.set_yscale("log")
    _widen(axes, points)
    _name_lines(axes, lines)
    # Left of nothing there is room for the names alone.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: "" if share < 0 else f"{share:.0%}"))
    axes.set_xlabel("bytes kept of the compressed matrices", color=INK, fontsize=FONT_SIZE)
    axes.set_title(f"{quality}; lower is better", color=INK, fontsize=FONT_SIZE, loc="left")
    plain(axes)
    return figure


def parts(sizes: Mapping[str, int]) -> Figure:
    """Bytes by part of a model, as bars with their sizes written out."""
    figure = Figure(figsize=(7.2, 0.6 + 0.45 * len(sizes)), layout="constrained")
    axes = figure.subplots()
    names = list(sizes)[::-1]
    values = [sizes[name] / MEGABYTE for name in names]
    bars = axes.barh(names, values, color=COLOURS[3])
    axes.bar_label(
        bars, [f"{value:,.{1 if value >= 1 else 2}f} MB" for value in values], padding=4, color=INK, fontsize=FONT_SIZE
    )
    axes.set_xlim(0, 1.18 * max(values))
    axes.set_xticks([])
    axes.set_title("Bytes of each part in a file", color=INK, fontsize=FONT_SIZE, loc="left")
    plain(axes)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg."""
    figure.savefig(stem.with_suffix(".png"), dpi=160, facecolor="white")
    stem.with_suffix(".svg").write_text(_svg(figure))


def standalone_svg(figure: Figure) -> str:
    """The picture as the content of a file."""
    return _svg(figure)


def inline_svg(figure: Figure) -> str:
    """The picture as an element of an HTML page, its ink in the colour of the page's text."""
    svg = _svg(figure, transparent=True)
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _svg(figure: Figure, transparent: bool = False) -> str:
    buffer = io.StringIO()
    # Text stays text, and equal pictures are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "laconic"}):
        figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None})
    return buffer.getvalue()


def _names(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.method for point in points))


def _widen(axes: Axes, points: Sequence[Point]) -> None:
    """Room for the names on the left, and for a margin in decades above and below."""
    kept = [point.kept for point in points]
    span = max(max(kept) - min(kept), 0.1)
    axes.set_xlim(min(kept) - 0.42 * span, max(kept) + 0.06 * span)
    # A perfect model has no place on a log axis, and a picture of nothing else still needs one.
    kls = [point.kl for point in points if point.kl > 0] or [1.0]
    axes.set_ylim(min(kls) / 1.6, max(kls) * 1.6)
    decades = math.log10(max(kls) / min(kls))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < SHORT_AXIS else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_lines(axes: Axes, lines: Mapping[str, Sequence[Point]]) -> None:
    """Each name left of its line's smallest model, moved apart where two would overlap."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    order = list(lines)
    upwards = sorted(order, key=lambda name: lines[name][0].kl)
    wanted = [math.log(max(lines[name][0].kl, math.exp(low))) for name in upwards]
    for name, height in zip(upwards, _apart(wanted, 0.055 * (high - low), high), strict=True):
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


def _apart(heights: Sequence[float], least: float, highest: float) -> list[float]:
    """The rising `heights` moved up to be `least` apart, and down again where they would pass `highest`."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + least) if moved else height)
    above = highest + least
    for index in reversed(range(len(moved))):
        above = moved[index] = min(moved[index], above - least)
    return moved


def as_written(text: str) -> str:
    """`text` for a figure, which reads TeX between dollars, and leaves names that begin with a _ out of legends."""
    return ("" if not text.startswith("_") else " ") + text.replace("$", r"\$")


def plain(axes: Axes) -> None:
    """No frame, and lines across as faint as they may be."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, which="both", length=0, labelsize=FONT_SIZE - 1)
    axes.grid(visible=True, axis="y", which="major", color="#999999", alpha=0.35, linewidth=0.8)
