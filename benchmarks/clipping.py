"""KL of `rtn` with its search for ranges relative to `rtn` with min–max grids, in nats per prediction.

Nothing is calibrated. Evaluated on some batches of held-out rows. KL also depends on how thousands of weights happen to
be rounded. With `--nudges N` every cell is therefore measured N times more, with the scale of each group of both grids
up to 2 % larger or smaller, and the tables have geometric means. Each finished cell is one line of
benchmarks/results/clipping.jsonl. An interrupted run continues.
"""

import argparse
from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import Literal

import torch
from rich.progress import track

from benchmarks.common import Cells, clone, kl, predictions
from benchmarks.quantizing import TEST_SETS, Setup, load_setup
from benchmarks.tables import ROOT, replace_between
from laconic.methods import Rtn
from laconic.numerics.grid import dequantize, fit_grid, quantize

CELLS = Cells("clipping", ("model", "bits", "group", "symmetric", "clip", "nudge"))
BEGIN = "<!-- clipping, made by `python -m benchmarks clipping_tables` -->"
Group = int | Literal["channel"]
BITS = (4, 3, 2)
GROUPS: tuple[Group, ...] = (32, 64, "channel")
BATCHES = 7
"""The largest number of batches for evaluation."""
NUDGE = 0.02

Key = tuple[str, int, Group, bool, bool, int]


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=list(TEST_SETS), nargs="+", default=list(TEST_SETS), help="some of the models"
    )
    parser.add_argument("--nudges", type=int, default=0, help="measure every cell so many times more")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    for model in options.only:
        missing = CELLS.missing(_keys(model, options.nudges))
        if missing:
            setup = load_setup(model, 0)
            rows = setup.rows[:: -(-len(setup.rows) // BATCHES)]
            setup = Setup(setup.lm, rows, predictions(setup.lm, rows), setup.calibration)
            for key in track(missing, model):
                CELLS.add(key, {"kl": measured(setup, key)})
    print(f"{CELLS}; `python -m benchmarks clipping_tables` makes the table")


def measured(setup: Setup, key: Key) -> float:
    """KL of one cell."""
    _, bits, group, symmetric, clip, nudge = key
    method = Rtn(bits=bits, group_size=group, symmetric=symmetric, clip=clip)
    generator = torch.Generator().manual_seed(nudge)
    small = clone(setup.lm)
    for site in small.sites():
        weight = site.parameter.data
        grid = fit_grid(weight, method.grid_spec(bits, weight.shape[1]))
        if nudge:
            share = 1 + NUDGE * (2 * torch.rand(grid.scale.shape, generator=generator) - 1)
            grid = grid._replace(scale=(grid.scale * share).half().float())
        weight.copy_(dequantize(quantize(weight, grid), grid))
    return kl(setup.dense, predictions(small, setup.rows))


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/quantization.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    lines = ["| model | grid | group | 4 bits | 3 bits | 2 bits |", "|---|---|---|---:|---:|---:|"]
    for model in TEST_SETS:
        for symmetric in (False, True):
            for group in GROUPS:
                entries = [_entry(model, bits, group, symmetric) for bits in BITS]
                if set(entries) == {"not run"}:
                    continue
                kind = "symmetric" if symmetric else "asymmetric"
                lines.append(f"| {model} | {kind} | {group} | {' | '.join(entries)} |")
    replace_between(ROOT / "docs/figures/quantization.md", "\n".join([*lines, ""]), BEGIN)


def _keys(model: str, nudges: int) -> Iterator[Key]:
    for nudge in range(nudges + 1):
        for symmetric in (False, True):
            for group in GROUPS:
                for bits in BITS:
                    for clip in (False, True):
                        yield model, bits, group, symmetric, clip, nudge


def _entry(model: str, bits: int, group: int | str, symmetric: bool) -> str:
    """KL of the search relative to min–max; with the number of nudged pairs, if there are several."""
    both = [
        {
            cell["nudge"]: cell["kl"]
            for cell in CELLS.where(model=model, bits=bits, group=group, symmetric=symmetric, clip=clip)
        }
        for clip in (True, False)
    ]
    pairs = [both[0][nudge] / both[1][nudge] for nudge in both[0].keys() & both[1].keys()]
    if not pairs:
        return "not run"
    around = f" ({min(pairs):.2f} to {max(pairs):.2f})" if len(pairs) > 1 else ""
    return f"{geometric_mean(pairs):.2f}{around}"
