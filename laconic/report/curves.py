"""How a training went: the loss of each batch and that of the held-out rows, by update."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from laconic.report.plots import COLOURS, FONT_SIZE, INK, plain


def curves(lines: Sequence[Mapping[str, Any]], what: str) -> Figure:
    """`lines` are those of a history: `loss` or `eval_loss` at a `step`. Kept are the numbers of least eval_loss."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    batches, held_out = (
        [(line["step"], line[key]) for line in lines if line.get(key) is not None] for key in ("loss", "eval_loss")
    )
    if batches:
        axes.plot(*zip(*batches, strict=True), color=COLOURS[-1], linewidth=1, alpha=0.8)
        _name(axes, max(batches, key=lambda point: point[1]), "training batches", COLOURS[-1])
    # Beyond the numbers there is nothing to draw.
    held_out = held_out or [(0, float("nan"))]
    axes.plot(*zip(*held_out, strict=True), color=COLOURS[3], marker="o", linewidth=2, markersize=5)
    _name(axes, held_out[-1], "held-out rows", COLOURS[3])
    best = min(held_out, key=lambda point: point[1])
    axes.plot(*best, marker="o", markersize=11, markerfacecolor="none", markeredgecolor=COLOURS[0], markeredgewidth=2)
    axes.annotate(
        f"kept: {best[1]:.3g}", best, (0, -16), textcoords="offset points", ha="center", color=COLOURS[0],
        fontsize=FONT_SIZE, fontweight="bold",
    )  # fmt: skip
    axes.margins(y=0.18)
    axes.set_xlim(right=1.2 * max(held_out[-1][0], 1))
    axes.set_xlabel("updates", color=INK, fontsize=FONT_SIZE)
    axes.set_title(f"{what}: loss", color=INK, fontsize=FONT_SIZE, loc="left")
    plain(axes)
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _name(axes: Any, at: tuple[float, float], name: str, colour: str) -> None:
    axes.annotate(
        name, at, (8, 0), textcoords="offset points", va="center", color=colour, fontsize=FONT_SIZE, fontweight="bold"
    )
