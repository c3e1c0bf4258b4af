"""Write the tables of docs/figures/heads.md from benchmarks/results/heads.jsonl."""

import argparse
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from benchmarks.common import places_of
from benchmarks.heads import CELLS, DENSE, KINDS, WAYS
from benchmarks.tables import ROOT, replace_between

BEGIN = "<!-- made by `python -m benchmarks heads_tables` -->"
SETS = "<!-- sets of data, made by `python -m benchmarks heads_tables` -->"
PAGE = ROOT / "docs" / "figures" / "heads.md"
ABOUT = {
    "addresses": "addresses in the United States whose parts (29 types) were labelled by people: the training data in "
    "the source distribution of usaddress 0.5.16 (MIT licence); every fifth is "
    "in the development split",
    "entities": "made by rules: in sentences of Google-RE (LAMA) the subject is a PER, the object a LOC or a DATE; "
    "other names are not marked, which limits the precision",
    "questions": "made by rules: sentences and facts of LAMA (Google-RE, T-REx). A template for each of 22 relations "
    'asks for the object, such as "Who makes X?"; about a sixth of the questions has no answer',
    "goals": "[PIQA](https://arxiv.org/abs/1911.11641): a goal and two ways to reach it, written by people. Its "
    "development split is divided into both splits, and only rows of at most 25 words are kept; chance is 0.5",
    "choices": "made by rules: a sentence of LAMA with a gap, and three objects of the same relation; chance is 0.333",
}
"""The sets of data by name."""

Cell = Mapping


def main(argv: Sequence[str]) -> None:
    """Write the tables of all finished cells."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    measured = {name: dense[0] for name in KINDS if (dense := CELLS.where(kind=name, way=DENSE))}
    rows = [f"| {name} | {ABOUT[name]} | {KINDS[name].rows:,d} |" for name in measured]
    replace_between(PAGE, "\n".join(["| data | about | training rows |", "|---|---|---:|", *rows, ""]), SETS)
    parts = [table(name, dense) for name, dense in measured.items()]
    replace_between(PAGE, "\n".join(line for part in parts for line in (*part, "")), BEGIN)


def table(name: str, dense: Cell) -> list[str]:
    """The lines of one set of data."""
    metrics = list(dense["metrics"])
    first = dense["metrics"][metrics[0]]
    lines = [
        f"**{KINDS[name].task}: {name}** ({dense['rows']} rows of the development split; {metrics[0]} of the "
        f"fine-tuned model {first['value']:.3f}, 95 % interval {first['low']:.3f} to {first['high']:.3f})",
        "",
        f"| | of the bytes | {' | '.join(metrics)} | change of {metrics[0]} | p | KL, nats |",
        f"|---|---:|{'---:|' * len(metrics)}---:|---:|---:|",
        f"| {DENSE} | 100 % | {_values(dense, metrics)} | | | |",
    ]
    for way in WAYS:
        for cell in CELLS.where(kind=name, way=way):
            change, kl = cell["changes"][metrics[0]], cell["kl"]
            places, around = places_of(mean(kl)), stdev(cell["metrics"][metrics[0]]["seeds"])
            lines.append(
                f"| {way} | {cell['bytes'] / cell['dense_bytes']:.0%} | {_values(cell, metrics)} | "
                f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f}; ± {around:.3f}) | "
                f"{change['p']:.3f} | {mean(kl):.{places}f} ± {stdev(kl):.{places}f} |"
            )
    return lines


def _values(cell: Cell, metrics: Sequence[str]) -> str:
    return " | ".join(f"{cell['metrics'][metric]['value']:.3f}" for metric in metrics)
