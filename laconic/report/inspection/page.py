"""The pictures of an inspection with their captions, its tables, and the page that holds them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from laconic.report import plots
from laconic.report.anatomy import Inspection
from laconic.report.html import Page, render
from laconic.report.inspection import figures, spreads
from laconic.report.inspection.activity import Activity
from laconic.report.inspection.narrative import paragraphs
from laconic.report.inspection.tally import Tally, together
from laconic.report.inspection.weights import Weights
from laconic.report.tables import Column, Table


@dataclass(frozen=True)
class Drawn:
    """A picture and what is under it."""

    figure: Figure
    caption: str


def draw(seen: Inspection, weights: Weights, found: Activity | None) -> dict[str, Drawn]:
    """Every picture by the name of its file."""
    drawn = {
        "size-by-part": Drawn(plots.parts({part.name: part.nbytes for part in seen.parts}), "Bytes of each part."),
        "magnitudes": Drawn(
            spreads.sizes(weights),
            "Each hill is one part of the model; it is high where many of its weights have that magnitude. Blue is "
            "inside the blocks.",
        ),
    }
    if weights.by_layer:
        drawn |= _by_layer(weights)
    return drawn if found is None else drawn | _activity(found, weights.layers)


def _by_layer(weights: Weights) -> dict[str, Drawn]:
    return {
        "far-from-zero": Drawn(
            figures.by_layer(
                weights,
                f"Weights of magnitude {weights.far:g} or more",
                lambda tallies: together(tallies).at_least(weights.far),
            ),
            "Darker matrices have more weights that are far from zero, and fewer that pruning by magnitude would take.",
        ),
        "top-l1": Drawn(
            figures.by_layer(weights, "Share of the L1 norm in the largest tenth of weights", figures.held_by_a_tenth),
            "Of a Gaussian it is 26 %, of equal weights 10 %. More means that few weights hold much.",
        ),
        "effective-rank": Drawn(
            figures.by_layer(weights, "Effective rank, of the full rank", figures.rank_used),
            "The exponential of the entropy of the singular values (Roy & Vetterli 2007). Lighter matrices are nearer "
            "to a low rank; of a factorized layer the factors are shown.",
        ),
        "spectra": Drawn(
            spreads.spectra(weights),
            "One line a matrix: its singular values from the largest down. A line that drops early is of a matrix that "
            "few directions describe.",
        ),
    }


def _activity(found: Activity, layers: Sequence[str]) -> dict[str, Drawn]:
    drawn = {
        "outliers": Drawn(
            figures.inputs(found.inputs, layers),
            "Eight bits for a whole input serve channels badly that are many times smaller than the largest: dark "
            "matrices need scales moved out of their inputs, or more bits.",
        )
    }
    for stack in found.blocks:
        if len(stack.influence) < 2:
            continue
        name = "blocks" if stack.stack == "blocks" else f"blocks-{stack.stack}"
        drawn[name] = Drawn(
            figures.blocks(stack),
            ("" if stack.stack == "blocks" else f"The {stack.stack}. ")
            + "Left, how much a block turns the hidden states that pass it. Right, how alike they are after each two "
            "blocks: dark squares along the diagonal are blocks that change little.",
        )
    if found.heads:
        drawn["heads"] = Drawn(
            figures.heads(found.heads),
            "Heads of one layer whose outputs are alike, up to rotation and scale, can stand for each other.",
        )
    return drawn


def tables_of(weights: Weights, found: Activity | None) -> dict[str, Table]:
    """By title: the parts, and what each matrix reads."""
    tables = {"Weights by part": _kinds(weights)}
    if weights.by_layer:
        tables["Weights by layer"] = _layers(weights)
    if found is not None:
        tables["Outliers among the inputs"] = _outliers(found)
    return tables


# Of |w|: the share of the L1 norm in the largest tenth; rank is the effective one, of the full one.
FIGURES = (
    Column("weights", "{:,d}"),
    Column("zeros", "{:.1%}"),
    Column("≥ 0.1", "{:.1%}"),
    Column("median", "{:.3g}"),
    Column("top tenth", "{:.0%}"),
    Column("rank", "{:.0%}"),
    Column("bits", "{:.1f}"),
)


def _kinds(weights: Weights) -> Table:
    rows = [(kind, *_figures([tally for tally in weights.tallies if tally.kind == kind])) for kind in weights.kinds]
    return Table((Column("part"), *FIGURES), tuple(rows))


def _layers(weights: Weights) -> Table:
    rows = [(layer, *_figures(weights.matrices(layer))) for layer in weights.by_layer]
    return Table((Column("layer"), *FIGURES), tuple(rows))


def _figures(tallies: Sequence[Tally]) -> tuple[int | float | None, ...]:
    found = together(tallies)
    return (
        found.number,
        found.zeros / max(found.number, 1),
        found.at_least(0.1),
        found.quantile(0.5),
        found.top_share(0.1),
        figures.rank_used(list(tallies)),
        sum(tally.bits * tally.magnitudes.number for tally in tallies) / max(found.number, 1),
    )


def every_matrix(weights: Weights) -> Table:
    """One row for each matrix."""
    rows = [(tally.name, tally.kind, *_figures([tally])) for tally in weights.matrices()]
    return Table((Column("matrix"), Column("part"), *FIGURES), tuple(rows))


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


def page(seen: Inspection, weights: Weights, found: Activity | None, drawn: Mapping[str, Drawn]) -> str:
    """One HTML page that needs nothing beside it."""
    return render(
        Page(
            title=f"{seen.model.rstrip('/').rpartition('/')[2]}: what its weights look like",
            summary=[
                f"{seen.architecture}, {seen.task}, stored as {seen.dtype}.",
                *(f"{name} of texts: {said}." for name, said in seen.said_of_texts()),
                *paragraphs(weights, found),
            ],
            pictures={one.caption: plots.inline_svg(one.figure) for one in drawn.values()},
            heading="Every matrix",
            table=every_matrix(weights),
        )
    )
