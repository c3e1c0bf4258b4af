"""The figures of an inspection with their captions, its tables, and its page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from laconic.report import plots
from laconic.report.html import Page, render
from laconic.report.inspection import figures as draw
from laconic.report.inspection.activity import Activity
from laconic.report.inspection.narrative import paragraphs
from laconic.report.inspection.parts import ModelParts
from laconic.report.inspection.weights import ModelWeights, WeightStats, combine
from laconic.report.tables import Column, Table, TableValue


@dataclass(frozen=True)
class CaptionedFigure:
    """A figure with its caption.

    Args:
        figure: the figure that is saved, and shown on a wide screen.
        caption: what it shows.
        narrow: the figure for a narrow screen; None to scroll `figure` in its box.
    """

    figure: Figure
    caption: str
    narrow: Figure | None = None


def draw_figures(parts: ModelParts, weights: ModelWeights, activity: Activity | None) -> dict[str, CaptionedFigure]:
    """The figures of an inspection.

    Args:
        parts: the parts of the model.
        weights: statistics of the weights.
        activity: measurements of activations; None if the model was not run.

    Returns:
        Figures by the name of their files.
    """
    sizes = {part.name: part.nbytes for part in parts.parts}
    captioned = {
        "size-by-part": CaptionedFigure(plots.parts(sizes), "Bytes of each part.", plots.parts(sizes, plots.NARROW)),
        "magnitudes": CaptionedFigure(
            draw.magnitude_figure(weights),
            "A histogram of magnitudes for each part of the model; parts inside the blocks are blue.",
            draw.magnitude_figure(weights, plots.NARROW),
        ),
    }
    if weights.by_layer:
        captioned |= _by_layer(weights)
    return captioned if activity is None else captioned | _activity_figures(activity, weights.layers)


def _by_layer(weights: ModelWeights) -> dict[str, CaptionedFigure]:
    return {
        "far-from-zero": CaptionedFigure(
            draw.layer_heatmap(
                weights,
                f"Weights of magnitude {weights.far:g} or more",
                lambda tallies: combine(tallies).at_least(weights.far),
            ),
            "Darker matrices have more weights that are far from zero, and fewer that magnitude pruning would remove.",
        ),
        "top-l1": CaptionedFigure(
            draw.layer_heatmap(
                weights,
                "Share of the L1 norm in the largest tenth of weights",
                lambda tallies: combine(tallies).top_share(0.1),
            ),
            "It is 26 % for a Gaussian and 10 % for equal weights. A high value means that few weights matter.",
        ),
        "effective-rank": CaptionedFigure(
            draw.layer_heatmap(weights, "Effective rank, of the full rank", relative_rank),
            "The exponential of the entropy of the singular values (Roy & Vetterli 2007). Lighter matrices are closer "
            "to a low rank. For a factorized layer the factors are shown.",
        ),
        "spectra": CaptionedFigure(
            draw.spectrum_figure(weights),
            "One line for each matrix: its singular values, the largest first. A line that drops early belongs to a "
            "matrix that a low rank approximates well.",
            draw.spectrum_figure(weights, plots.NARROW),
        ),
    }


def _activity_figures(activity: Activity, layers: Sequence[str]) -> dict[str, CaptionedFigure]:
    captioned = {
        "outliers": CaptionedFigure(
            draw.outlier_heatmap(activity.inputs, layers),
            "With one scale for all channels of an input, small channels lose precision in eight bits. Dark matrices "
            "need other scales (smoothquant, awq-scale) or more bits.",
        )
    }
    for stack in activity.blocks:
        if len(stack.influence) < 2:
            continue
        name = "blocks" if stack.stack == "blocks" else f"blocks-{stack.stack}"
        captioned[name] = CaptionedFigure(
            draw.block_figure(stack),
            ("" if stack.stack == "blocks" else f"The {stack.stack}. ")
            + "Left: how much each block changes the hidden states. Right: how similar they are after each two blocks; "
            "dark squares along the diagonal are blocks that change little.",
        )
    if activity.heads:
        captioned["heads"] = CaptionedFigure(
            draw.head_heatmap(activity.heads),
            "Heads of one layer with similar outputs, up to rotation and scale, are redundant.",
        )
    return captioned


def inspection_tables(weights: ModelWeights, activity: Activity | None) -> dict[str, Table]:
    """Tables of weights by part and by layer, and of outliers among inputs.

    Args:
        weights: statistics of the weights.
        activity: measurements of activations; None if the model was not run.

    Returns:
        Tables by title.
    """
    kinds = (([kind], [tally for tally in weights.tallies if tally.kind == kind]) for kind in weights.kinds)
    tables = {"Weights by part": _weight_table(["part"], kinds)}
    if weights.by_layer:
        layers = (([layer], weights.matrices(layer)) for layer in weights.by_layer)
        tables["Weights by layer"] = _weight_table(["layer"], layers)
    if activity is not None:
        tables["Outliers among the inputs"] = Table.of(
            sorted(activity.inputs, key=lambda matrix: -(matrix.ratio or 0))[:10],
            (Column("matrix"), lambda matrix: matrix.name),
            (Column("largest", "{:.3g}"), lambda matrix: matrix.largest),
            (Column("median channel", "{:.3g}"), lambda matrix: matrix.median),
            (Column("ratio", "{:.1f}"), lambda matrix: matrix.ratio),
            (Column("channels over 6 ×", "{:d}"), lambda matrix: matrix.outliers),
            (Column("kurtosis", "{:.1f}"), lambda matrix: matrix.kurtosis),
        )
    return tables


def relative_rank(tallies: Sequence[WeightStats]) -> float | None:
    """The effective rank as a fraction of the full rank, the mean over matrices; None without matrices."""
    shares = [tally.spectrum.effective / tally.spectrum.full for tally in tallies if tally.spectrum]
    return sum(shares) / len(shares) if shares else None


STATISTICS: tuple[tuple[Column, Callable[[Sequence[WeightStats]], TableValue]], ...] = (
    (Column("weights", "{:,d}"), lambda tallies: combine(tallies).number),
    (Column("zeros", "{:.1%}"), lambda tallies: combine(tallies).zeros / max(combine(tallies).number, 1)),
    (Column("≥ 0.1", "{:.1%}"), lambda tallies: combine(tallies).at_least(0.1)),
    (Column("median", "{:.3g}"), lambda tallies: combine(tallies).quantile(0.5)),
    (Column("top tenth", "{:.0%}"), lambda tallies: combine(tallies).top_share(0.1)),
    (Column("rank", "{:.0%}"), relative_rank),
    (
        Column("bits", "{:.1f}"),
        lambda tallies: sum(t.bits * t.magnitudes.number for t in tallies) / max(combine(tallies).number, 1),
    ),
)
"""Columns of statistics of weights. `top tenth` is the share of the L1 norm in the largest tenth of the weights."""


def _weight_table(headings: Sequence[str], rows: Iterable[tuple[Sequence[str], Sequence[WeightStats]]]) -> Table:
    """A table of statistics of weights.

    Args:
        headings: headings of the columns before the statistics.
        rows: the values of these columns, and the matrices of the row.
    """
    columns = (*map(Column, headings), *(column for column, _ in STATISTICS))
    return Table(columns, tuple((*names, *(value(tallies) for _, value in STATISTICS)) for names, tallies in rows))


def inspection_page(
    parts: ModelParts, weights: ModelWeights, activity: Activity | None, figures: Mapping[str, CaptionedFigure]
) -> str:
    """The inspection as one self-contained HTML page.

    Args:
        parts: the parts of the model.
        weights: statistics of the weights.
        activity: measurements of activations; None if the model was not run.
        figures: from `draw_figures`.
    """
    matrices = (([tally.name, tally.kind], [tally]) for tally in weights.matrices())
    captioned = figures.values()
    return render(
        Page(
            title=f"{parts.model.rstrip('/').rpartition('/')[2]}: what its weights look like",
            summary=[
                f"{parts.architecture}, {parts.task}, stored as {parts.dtype}.",
                *(() if parts.active is None else (f"A mixture of experts: {parts.active}.",)),
                *(f"{name} of texts: {text}." for name, text in parts.embedding_notes()),
                *paragraphs(weights, activity),
            ],
            pictures={figure.caption: plots.inline_svg(figure.figure) for figure in captioned},
            narrow_pictures={figure.caption: plots.inline_svg(figure.narrow) for figure in captioned if figure.narrow},
            heading="Every matrix",
            table=_weight_table(["matrix", "part"], matrices),
        )
    )
