"""Draw a chart: dots with intervals, lines along amounts, the Pareto front as a staircase, and the original."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from laconic.report.plots import (
    COLOURS,
    FONT_SIZE,
    INK,
    MARKERS,
    NARROW,
    escape_mathtext,
    inline_svg,
    label_axes,
    style_axes,
)
from laconic.report.study.charts import Chart, Dot
from laconic.report.study.groups import Measure

HEIGHT, LEGEND_LINE = 3.5, 0.21
SMALL = FONT_SIZE - 0.5
MAX_TITLE_LINE = 48
"""The largest number of characters of a title on one line."""
MAX_HALF_NAME = 24
"""The largest number of characters of a name for two columns in the legend."""
LINE_SPREAD = 0.05
"""The fraction of the width over which lines with the same amounts are spread, so that intervals do not overlap."""
LEFT_EDGE = 0.2
"""The name of a point left of this fraction of the width is written on its right."""
TICK_DISTANCE = 0.09
"""The least distance between two ticks, as a fraction of the width."""
MAX_TICKED = 8
"""The largest number of amounts for which each has a tick."""
WIDE_RANGE = 20
"""Ratio of the largest and the smallest value above which an axis is logarithmic."""
PALETTE = (COLOURS[3], COLOURS[0], COLOURS[2], COLOURS[4], COLOURS[1], COLOURS[5], COLOURS[6])
SERIES = r'<g id="dot-(\d+)">'


def draw_chart(chart: Chart) -> Figure:
    """Draw a chart.

    Args:
        chart: the chart.

    Returns:
        A figure in which every dot is an element with the id `dot-` and its index.
    """
    colours = dict(zip(_unique(dot.colour for dot in chart.dots), cycle(PALETTE), strict=False))
    shapes = _shapes(chart.dots)
    legend = sorted({(dot.colour, dot.shape): 0 for dot in chart.dots}, key=lambda pair: list(colours).index(pair[0]))
    labels = [shape if colour in shape else f"{colour}: {shape}" for colour, shape in legend]
    columns = 2 if max(map(len, labels)) <= MAX_HALF_NAME else 1
    lines = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(NARROW, HEIGHT + LEGEND_LINE * lines), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    _set_scale(axes, chart)
    _draw_original(axes, chart)
    if chart.front:
        axes.step(*zip(*chart.front, strict=True), where="post", color=INK, linewidth=1, alpha=0.55, zorder=1)
    dots = _spread_lines(chart.dots, axes) if chart.kind == "amount" else chart.dots
    for line in _unique(dot.line for dot in dots):
        joined = sorted((dot for dot in dots if dot.line == line), key=lambda dot: dot.at[0])
        axes.plot(
            *zip(*(dot.at for dot in joined), strict=True), color=colours[joined[0].colour], linewidth=1.3, alpha=0.5
        )
    for index, dot in enumerate(dots):
        _draw_dot(axes, dot, index, colours[dot.colour], shapes[dot.shape])
    separator = ":\n" if len(chart.title) + len(chart.quality.title) > MAX_TITLE_LINE else ": "
    title = f"{chart.title}{separator}{chart.quality.title}"
    label_axes(axes, escape_mathtext(title), x=escape_mathtext(chart.cost.title))
    handles = [
        Line2D([], [], color=colours[colour], marker=shapes[shape], linewidth=1.3, markersize=6, label=label)
        for (colour, shape), label in zip(legend, map(escape_mathtext, labels), strict=True)
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower left", frameon=False, fontsize=SMALL, labelcolor=INK, ncols=columns
    )
    return figure


def chart_svg(chart: Chart, figure: Figure) -> str:
    """The chart as an element of a page, with its caption for screen readers and the name of each dot as a tooltip."""
    svg = inline_svg(figure)
    names = [escape(dot.title) for dot in chart.dots]
    svg = re.sub(SERIES, lambda match: f"<g><title>{names[int(match[1])]}</title>", svg)
    # Ids must be unique in a page, so ids to which nothing refers are removed.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(chart.caption)}"', 1)


def _draw_dot(axes: Axes, dot: Dot, index: int, colour: str, shape: str) -> None:
    x, y = dot.at
    for cell in dot.cells:
        axes.plot(*cell, color=colour, marker=".", markersize=3.5, alpha=0.6, linestyle="none")
    if dot.low is not None and dot.high is not None:
        axes.plot([x, x], [max(dot.low, axes.get_ylim()[0]), dot.high], color=colour, linewidth=1.4, alpha=0.6)
    ring = {"markeredgecolor": INK, "markeredgewidth": 1.6} if dot.on_front else {}
    (mark,) = axes.plot(x, y, color=colour, marker=shape, markersize=8 if dot.on_front else 6, zorder=3, **ring)
    mark.set_gid(f"dot-{index}")


def _spread_lines(dots: Sequence[Dot], axes: Axes) -> list[Dot]:
    """Move lines with the same amounts a little apart, so that each interval can be seen."""
    lines = _unique(dot.line for dot in dots)
    low, high = axes.get_xlim()
    log = axes.get_xscale() == "log"
    moved: list[Dot] = []
    for dot in dots:
        part = LINE_SPREAD * (lines.index(dot.line) / max(len(lines) - 1, 1) - 0.5)

        def move(point: tuple[float, float], part: float = part) -> tuple[float, float]:
            x, y = point
            return x * (high / low) ** part if log else x + part * (high - low), y

        moved.append(replace(dot, at=move(dot.at), cells=tuple(map(move, dot.cells))))
    return moved


def _draw_original(axes: Axes, chart: Chart) -> None:
    """Draw the original: a star, or a line where it has only cost or quality, or no place on a logarithmic axis."""
    cost, quality = chart.original
    if quality is not None and quality <= 0 and axes.get_yscale() == "log":
        quality = None
    dotted = {"color": INK, "linewidth": 1, "linestyle": (0, (1, 2)), "zorder": 0}
    if quality is not None:
        axes.axhline(quality, **dotted)
    if cost is not None:
        axes.axvline(cost, **dotted)
    name = {"color": INK, "fontsize": SMALL, "textcoords": "offset points"}
    if quality is not None and cost is not None:
        axes.plot(cost, quality, color=INK, marker="*", markersize=11, linestyle="none", zorder=2)
    if cost is not None:
        # Small models have low quality, so the opposite corner has few lines.
        height, side = (0.03, "bottom") if chart.quality.higher_is_better else (0.98, "top")
        # On the left the label would overlap the labels of the axis.
        away, end = (4, "left") if _place(axes, cost) < LEFT_EDGE else (-4, "right")
        axes.annotate(
            "original", (cost, height), (away, 0), xycoords=axes.get_xaxis_transform(), ha=end, va=side, **name
        )
    elif quality is not None:
        # Elsewhere put the label on the better side, away from the lines.
        up, side = (4, "bottom") if chart.quality.higher_is_better else (-4, "top")
        axes.annotate(
            "original", (0.5, quality), (0, up), xycoords=axes.get_yaxis_transform(), ha="center", va=side, **name
        )


def _place(axes: Axes, x: float) -> float:
    """0 at the left end of the axis, 1 at its right end."""
    return float(axes.transAxes.inverted().transform(axes.transData.transform((x, 1.0)))[0])


def _set_scale(axes: Axes, chart: Chart) -> None:
    """Limits with some room, logarithmic where the values are far apart."""
    cost, quality = chart.original
    xs = [dot.at[0] for dot in chart.dots] + ([cost] if cost else [])
    ends = [end for dot in chart.dots for end in (dot.at[1], dot.low, dot.high, *(y for _, y in dot.cells))]
    # The ends of intervals may be zero, which has no place on a logarithmic axis; centres set its lower limit.
    centres = [dot.at[1] for dot in chart.dots] + ([quality] if quality is not None else [])
    log = not chart.quality.higher_is_better and _far_apart([y for y in centres if y > 0])
    ys = [y for y in (*ends, quality) if y is not None and (y > 0 or not log)]
    if log:
        ys = [y for y in ys if y >= min(y for y in centres if y > 0) / 3]
    axes.set_xlim(*_limits(axes, "x", xs, _far_apart(xs)))
    axes.set_ylim(*_limits(axes, "y", ys, log))
    _set_ticks(axes, "y", chart.quality, log)
    _set_ticks(axes, "x", chart.cost, _far_apart(xs))
    if chart.kind == "amount" and len(set(xs)) <= MAX_TICKED:
        axes.set_xticks(_readable_ticks(sorted(set(xs)), axes))
        axes.set_xticks([], minor=True)


def _far_apart(values: Sequence[float]) -> bool:
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) > WIDE_RANGE


def _limits(axes: Axes, which: str, values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        (axes.set_yscale if which == "y" else axes.set_xscale)("log")
        room = (high / low) ** 0.08
        return low / room, high * room
    room = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
    return low - room, high + room


def _set_ticks(axes: Axes, which: str, measure: Measure, log: bool) -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    if log:
        decades = math.log10(axis.get_view_interval()[1] / axis.get_view_interval()[0])
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6))
    if "%" in measure.form:
        axis.set_major_formatter(PercentFormatter(1))
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _readable_ticks(values: Sequence[float], axes: Axes) -> list[float]:
    """The values whose ticks are far enough from the previous tick; `values` are in rising order."""
    readable: list[float] = []
    for value in values:
        if not readable or _place(axes, value) - _place(axes, readable[-1]) >= TICK_DISTANCE:
            readable.append(value)
    return readable


def _shapes(dots: Sequence[Dot]) -> dict[str, str]:
    """A marker for each method, different within a colour while there are enough markers."""
    shapes: dict[str, str] = {}
    within: Counter[str] = Counter()
    for dot in dots:
        if dot.shape not in shapes:
            shapes[dot.shape] = MARKERS[within[dot.colour] % len(MARKERS)]
            within[dot.colour] += 1
    return shapes


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
