"""The figures of an inspection with their captions, its tables, and its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from laconic.report import plots
from laconic.report.anatomy import Inspection
from laconic.report.html import Page, render
from laconic.report.inspection import distributions, heatmaps
from laconic.report.inspection.activity import Activity
from laconic.report.inspection.narrative import paragraphs
from laconic.report.inspection.weights import ModelWeights, WeightStats, combine
from laconic.report.tables import Column, Table


@dataclass(frozen=True)
class CaptionedFigure:
    """A figure with its caption.

    Args:
        figure: as it is saved, and shown on a wide screen.
        caption: what it shows.
        narrow: the figure for a narrow screen; None to scroll `figure` in its box.
    """

    figure: Figure
    caption: str
    narrow: Figure | None = None


def draw_figures(seen: Inspection, weights: ModelWeights, found: Activity | None) -> dict[str, CaptionedFigure]:
    """The figures of an inspection.

    Args:
        seen: the anatomy of the model.
        weights: statistics of the weights.
        found: measurements of activations; None if the model was not run.

    Returns:
        Figures by the name of their files.
    """
    sizes = {part.name: part.nbytes for part in seen.parts}
    drawn = {
        "size-by-part": CaptionedFigure(plots.parts(sizes), "Bytes of each part.", plots.parts(sizes, plots.NARROW)),
        "magnitudes": CaptionedFigure(
            distributions.magnitude_figure(weights),
            "A histogram of magnitudes for each part of the model; parts inside the blocks are blue.",
            distributions.magnitude_figure(weights, plots.NARROW),
        ),
    }
    if weights.by_layer:
        drawn |= _by_layer(weights)
    return drawn if found is None else drawn | _activity(found, weights.layers)


def _by_layer(weights: ModelWeights) -> dict[str, CaptionedFigure]:
    return {
        "far-from-zero": CaptionedFigure(
            heatmaps.layer_heatmap(
                weights,
                f"Weights of magnitude {weights.far:g} or more",
                lambda tallies: combine(tallies).at_least(weights.far),
            ),
            "Darker matrices have more weights that are far from zero, and fewer that magnitude pruning would remove.",
        ),
        "top-l1": CaptionedFigure(
            heatmaps.layer_heatmap(
                weights, "Share of the L1 norm in the largest tenth of weights", heatmaps.top_tenth_share
            ),
            "It is 26 % for a Gaussian and 10 % for equal weights. A high value means that few weights matter.",
        ),
        "effective-rank": CaptionedFigure(
            heatmaps.layer_heatmap(weights, "Effective rank, of the full rank", heatmaps.relative_rank),
            "The exponential of the entropy of the singular values (Roy & Vetterli 2007). Lighter matrices are closer "
            "to a low rank. For a factorized layer the factors are shown.",
        ),
        "spectra": CaptionedFigure(
            distributions.spectrum_figure(weights),
            "One line for each matrix: its singular values, the largest first. A line that drops early belongs to a "
            "matrix that a low rank approximates well.",
            distributions.spectrum_figure(weights, plots.NARROW),
        ),
    }


def _activity(found: Activity, layers: Sequence[str]) -> dict[str, CaptionedFigure]:
    drawn = {
        "outliers": CaptionedFigure(
            heatmaps.outlier_heatmap(found.inputs, layers),
            "With one scale for all channels of an input, small channels lose precision in eight bits. Dark matrices "
            "need other scales (smoothquant, awq-scale) or more bits.",
        )
    }
    for stack in found.blocks:
        if len(stack.influence) < 2:
            continue
        name = "blocks" if stack.stack == "blocks" else f"blocks-{stack.stack}"
        drawn[name] = CaptionedFigure(
            heatmaps.block_figure(stack),
            ("" if stack.stack == "blocks" else f"The {stack.stack}. ")
            + "Left: how much each block changes the hidden states. Right: how similar they are after each two blocks; "
            "dark squares along the diagonal are blocks that change little.",
        )
    if found.heads:
        drawn["heads"] = CaptionedFigure(
            heatmaps.head_heatmap(found.heads),
            "Heads of one layer with similar outputs, up to rotation and scale, are redundant.",
        )
    return drawn


def inspection_tables(weights: ModelWeights, found: Activity | None) -> dict[str, Table]:
    """Tables of weights by part and by layer, and of outliers among inputs.

    Args:
        weights: statistics of the weights.
        found: measurements of activations; None if the model was not run.

    Returns:
        Tables by title.
    """
    tables = {"Weights by part": _table_by_kind(weights)}
    if weights.by_layer:
        tables["Weights by layer"] = _table_by_layer(weights)
    if found is not None:
        tables["Outliers among the inputs"] = _outliers(found)
    return tables


# Of |w|: the share of the L1 norm in the largest tenth; rank is the effective one, of the full one.
STAT_COLUMNS = (
    Column("weights", "{:,d}"),
    Column("zeros", "{:.1%}"),
    Column("≥ 0.1", "{:.1%}"),
    Column("median", "{:.3g}"),
    Column("top tenth", "{:.0%}"),
    Column("rank", "{:.0%}"),
    Column("bits", "{:.1f}"),
)


def _table_by_kind(weights: ModelWeights) -> Table:
    rows = [(kind, *_statistics([tally for tally in weights.tallies if tally.kind == kind])) for kind in weights.kinds]
    return Table((Column("part"), *STAT_COLUMNS), tuple(rows))


def _table_by_layer(weights: ModelWeights) -> Table:
    rows = [(layer, *_statistics(weights.matrices(layer))) for layer in weights.by_layer]
    return Table((Column("layer"), *STAT_COLUMNS), tuple(rows))


def _statistics(tallies: Sequence[WeightStats]) -> tuple[int | float | None, ...]:
    found = combine(tallies)
    return (
        found.number,
        found.zeros / max(found.number, 1),
        found.at_least(0.1),
        found.quantile(0.5),
        found.top_share(0.1),
        heatmaps.relative_rank(list(tallies)),
        sum(tally.bits * tally.magnitudes.number for tally in tallies) / max(found.number, 1),
    )


def every_matrix(weights: ModelWeights) -> Table:
    """One row for each matrix."""
    rows = [(tally.name, tally.kind, *_statistics([tally])) for tally in weights.matrices()]
    return Table((Column("matrix"), Column("part"), *STAT_COLUMNS), tuple(rows))


def _outliers(found: Activity) -> Table:
    columns = (
        Column("matrix"),
        Column("largest", "{:.3g}"),
        Column("median channel", "{:.3g}"),
        Column("ratio", "{:.1f}"),
        Column("channels over 6 ×", "{:d}"),
        Column("kurtosis", "{:.1f}"),
    )
    worst = sorted(found.inputs, key=lambda one: -(one.ratio or 0))[:10]
    rows = [(one.name, one.largest, one.median, one.ratio, one.outliers, one.kurtosis) for one in worst]
    return Table(columns, tuple(rows))


def inspection_page(
    seen: Inspection, weights: ModelWeights, found: Activity | None, drawn: Mapping[str, CaptionedFigure]
) -> str:
    """The inspection as one self-contained HTML page.

    Args:
        seen: the anatomy of the model.
        weights: statistics of the weights.
        found: measurements of activations; None if the model was not run.
        drawn: from `draw_figures`.
    """
    return render(
        Page(
            title=f"{seen.model.rstrip('/').rpartition('/')[2]}: what its weights look like",
            summary=[
                f"{seen.architecture}, {seen.task}, stored as {seen.dtype}.",
                *(f"{name} of texts: {said}." for name, said in seen.embedding_notes()),
                *paragraphs(weights, found),
            ],
            pictures={one.caption: plots.inline_svg(one.figure) for one in drawn.values()},
            narrow_pictures={one.caption: plots.inline_svg(one.narrow) for one in drawn.values() if one.narrow},
            heading="Every matrix",
            table=every_matrix(weights),
        )
    )
