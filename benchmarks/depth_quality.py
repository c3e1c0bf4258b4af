"""Quality after dropping blocks of two encoders of six blocks: every selector with every replacement.

Calibration: 128 training rows. Evaluated on the whole development set, without fine-tuning: KL divergence from the
dense model (nats), the task's metric, and the bytes of the matrices inside the blocks. Each finished cell is one line
of benchmarks/results/depth_quality.jsonl. An interrupted run continues; to start again, delete the file.
"""

import argparse
from collections.abc import Sequence
from statistics import mean

from rich.progress import track

from benchmarks.common import (
    Cells,
    calibration,
    clone,
    load_model,
    mean_of,
    quality,
)
from benchmarks.lowrank import CALIBRATION_ROWS, METRICS, MODELS, SEEDS, Reference, evaluate
from benchmarks.tables import ROOT, replace_between
from laconic.calibrate import Calibration
from laconic.compress import Shorten
from laconic.compress.depth.cuts import Cut, Limits, all_cuts
from laconic.compress.depth.selection import Select, Selection, choose_runs, greedy
from laconic.compress.depth.trial import Replacement, Trial
from laconic.model import LanguageModel

BEGIN = "<!-- made by `python -m benchmarks depth_tables` -->"
CELLS = Cells("depth_quality", ("model", "seed", "select", "replace", "drop"))
DROPS = (1, 2, 3, 4)
SELECTS: tuple[Select, ...] = ("influence", "angular", "taylor", "greedy", "dp", "first", "last", "alternate")
REPLACEMENTS: tuple[Replacement, ...] = ("nothing", "bias", "linear")


def main(argv: Sequence[str]) -> None:
    """Measure every cell that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS), help="one of the models")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS), help="some of the seeds")
    parser.add_argument("--drops", nargs="+", type=int, choices=DROPS, default=list(DROPS), help="some of the numbers")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else MODELS:
        for seed in options.seeds:
            measure(name, seed, options.drops)
    print(f"{CELLS}; `python -m benchmarks depth_tables` makes the tables")


def measure(name: str, seed: int, drops: Sequence[int]) -> None:
    """Measure every cell of one model and one calibration seed that has no line yet."""
    keys: list[tuple[str, int, Select, Replacement, int]] = [
        (name, seed, select, replace, drop)
        for drop in drops
        for replace in REPLACEMENTS
        for select in SELECTS
        if not (select == "alternate" and drop > 3)
    ]
    missing = CELLS.missing(keys)
    if not missing:
        return
    lm = load_model(name)
    rows = calibration(lm, MODELS[name], CALIBRATION_ROWS, seed)
    reference = Reference.of(lm, MODELS[name])
    chooser = Chooser(lm, rows)
    found: dict[tuple, dict] = {}
    for key in track(missing, f"{name}, seed {seed}"):
        *_, select, replace, drop = key
        blocks = chooser.blocks(select, replace, drop)
        if (blocks, replace) not in found:
            small = clone(lm)
            outcome = Shorten(blocks=blocks, replace=replace).apply(small, rows)
            found[blocks, replace] = {"bytes": outcome.nbytes, "dense_bytes": outcome.dense_nbytes,
                                      "blocks": blocks, **evaluate(reference, small)}  # fmt: skip
        CELLS.add(key, found[blocks, replace])


class Chooser:
    """The blocks that each selector drops; divergences measured for one number of blocks are reused for the next."""

    def __init__(self, lm: LanguageModel, data: Calibration) -> None:
        self.lm, self.data = lm, data
        self.cuts = all_cuts(lm, "blocks")
        (self.row,) = self.cuts.values()
        self.trials = {replace: Trial.of(lm, data, replace, max(DROPS)) for replace in REPLACEMENTS}

    def blocks(self, select: Select, replace: Replacement, drop: int) -> tuple[int, ...]:
        """The numbers of the blocks to drop."""
        limits = Limits(lambda _: True, lambda _: True)
        chosen: list[Cut]
        if select in ("greedy", "dp"):
            search = greedy if select == "greedy" else choose_runs
            chosen = search(self.trials[replace], self.row, drop, limits, False)
        else:
            selection = Selection(select=select, contiguous=False)
            chosen = selection.choose(self.lm, self.data, self.cuts, {tuple(self.cuts): drop}, limits)
        return tuple(cut.layer for cut in chosen)


def write_tables(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells into docs/figures/pruning.md."""
    argparse.ArgumentParser(description=write_tables.__doc__).parse_args(argv)
    replace_between(ROOT / "docs/figures/pruning.md", "\n".join(filter(None, map(table, MODELS))), BEGIN)


def table(name: str) -> str:
    """KL / metric of each selector and replacement by the number of blocks dropped, means over the seeds."""
    mine = CELLS.where(model=name)
    if not mine:
        return ""
    seeds = len({cell["seed"] for cell in mine})
    lines = [
        f"**{name}** ({METRICS[name]} {mine[0]['dense_metric']:.3f} dense, {mine[0]['dense_bytes'] / 1e6:.1f} MB in "
        f"the blocks; calibration seeds: {seeds}): KL to the dense model / {METRICS[name]}, by blocks dropped of six",
        "",
        f"| select | replace | {' | '.join(f'−{drop}' for drop in DROPS)} |",
        "|---|---|" + "---|" * len(DROPS),
    ]
    variants = [(select, replace) for select in SELECTS for replace in REPLACEMENTS]
    kls = {
        (*variant, drop): round(mean_of(_at(mine, *variant, drop), "kl"), 4) for variant in variants for drop in DROPS
    }
    least = {drop: min(kls[*variant, drop] for variant in variants) for drop in DROPS}
    for variant in variants:
        # Several selectors may drop the same blocks, so that more than one is lowest.
        entries = [quality(_at(mine, *variant, drop), kls[*variant, drop] == least[drop], digits=3) for drop in DROPS]
        lines.append(f"| {' | '.join(variant)} | {' | '.join(entries)} |")
    for replace in ("nothing", "linear"):
        sizes = [_megabytes(_at(mine, "dp", replace, drop)) for drop in DROPS]
        lines.append(f"| *MB in the blocks* | *dp, {replace}* | {' | '.join(sizes)} |")
    return "\n".join([*lines, ""])


def _megabytes(here: list[dict]) -> str:
    return f"{mean(cell['bytes'] for cell in here) / 1e6:.1f}" if here else ""


def _at(mine: list[dict], select: str, replace: str, drop: int) -> list[dict]:
    return [c for c in mine if (c["select"], c["replace"], c["drop"]) == (select, replace, drop)]
