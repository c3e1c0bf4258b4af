"""Pictures of what was found by layer: matrices, their inputs, heads and blocks."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from laconic.report.inspection.activity import Inputs
from laconic.report.inspection.collected import Blocks, Heads
from laconic.report.inspection.shading import WIDTH, Grid, shade, shaded, text_size
from laconic.report.inspection.tally import IN_BLOCKS, Tally, together
from laconic.report.inspection.weights import Weights
from laconic.report.plots import COLOURS, FONT_SIZE, INK, plain


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
                      color=INK, fontsize=text_size(count))  # fmt: skip
    left.set_xticks([])
    left.set_ylabel(f"block of {found.stack}" if found.stack != "blocks" else "block", color=INK, fontsize=FONT_SIZE)
    left.set_title("What each block turns: 1 − cosine", color=INK, fontsize=FONT_SIZE, loc="left")
    plain(left)
    left.grid(visible=False)
    left.spines["bottom"].set_visible(False)
    left.tick_params(labelsize=text_size(count))
    if found.similarity is None:
        right.set_visible(False)
        return figure
    cells: dict[tuple[str, str], float | None] = {
        (a, b): value
        for a, row in zip(found.labels, found.similarity, strict=True)
        for b, value in zip(found.labels, row, strict=True)
    }
    grid = Grid(rows=found.labels, columns=found.labels, cells=cells, write=_hundredths, bounds=(0, 1))
    shade(figure, right, grid, numbers=count < 8)
    right.set_title("Similarity (CKA) after each block", color=INK, fontsize=FONT_SIZE, loc="left")
    return figure


def held_by_a_tenth(tallies: list[Tally]) -> float:
    """How much of the L1 norm the largest tenth of the weights holds."""
    return together(tallies).top_share(0.1)


def rank_used(tallies: list[Tally]) -> float | None:
    """The effective rank over the full one, the mean of the matrices."""
    spectra_of = [tally.spectrum for tally in tallies if tally.spectrum]
    return sum(one.effective / one.full for one in spectra_of) / len(spectra_of) if spectra_of else None


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.0995 or value == 0 else f"{100 * value:.1f} %"


def _times(value: float) -> str:
    return f"{value:.0f} ×" if value >= 9.95 else f"{value:.1f} ×"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
