"""Write the tables of docs/figures/five-studies.md: results of the local variants of the five studies.

Each study is one command, `laconic study NAME-local -o FOLDER/NAME`. `python -m benchmarks seed_tables FOLDER` copies
the results.csv of finished studies into benchmarks/results/studies/. Without a folder it writes the tables of the
results that are there.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import RESULTS, places_of
from benchmarks.tables import ROOT, replace_between

Row = dict[str, str]

STUDIES = ("000-drone", "001-ranks", "002-l1", "003-width", "004-knowledge")
KEPT = RESULTS / "studies"
PAGE = ROOT / "docs/figures/five-studies.md"
MEASURES = ("accuracy", "matthews", "pearson", "f1", "perplexity", "token_accuracy", "p@10/trex", "p@10", "acc")
"""The tables show the first of these metrics that a task has."""


def main(argv: Sequence[str]) -> None:
    """Copy results if a folder is given, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="of the studies' folders")
    folder = parser.parse_args(argv).folder
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in STUDIES:
        found = folder / name / "results.csv" if folder else None
        if found is not None and found.exists():
            (KEPT / f"{name}.csv").write_text(found.read_text())
        if (KEPT / f"{name}.csv").exists():
            replace_between(PAGE, "\n".join(TABLES[name](rows_of(name))) + "\n", begin_of(name))


def begin_of(name: str) -> str:
    """The comment before the tables of a study."""
    return f"<!-- made by `python -m benchmarks seed_tables`: {name} -->"


def rows_of(name: str) -> list[Row]:
    """The finished cells of a study."""
    with (KEPT / f"{name}.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["state"] == "done"]


def figure(row: Row) -> str:
    """The metric of the cell's task, and its 95 % interval over the evaluated rows."""
    for measure in MEASURES:
        for column, value in row.items():
            if column.endswith(f" {measure}") and value:
                low, high = (float(row[f"{column} {end}"]) for end in ("low", "high"))
                return f"{number(float(value))} [{number(low)}, {number(high)}]"
    return ""


def number(value: float) -> str:
    """A number with three decimals, and fewer if it is large."""
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def divergence(row: Row) -> str:
    """KL to the original."""
    kl = float(row["kl"])
    return f"{kl:.{places_of(kl)}f}"


def grid(rows: Sequence[Row], down: Sequence[str], across: str, entry: Callable[[Row], str]) -> list[str]:
    """One line for each combination of `down`, one column for each value of `across`, in their order."""
    values = list(dict.fromkeys(row[across] for row in rows))
    lines = [f"| {' | '.join(down)} | {' | '.join(values)} |", "|---" * len(down) + "|---:" * len(values) + "|"]
    for keys in dict.fromkeys(tuple(row[name] for name in down) for row in rows):
        here = {row[across]: row for row in rows if tuple(row[name] for name in down) == keys}
        lines.append(f"| {' | '.join([*keys, *(entry(here[value]) if value in here else '' for value in values)])} |")
    return [*lines, ""]


def original(rows: Sequence[Row]) -> str:
    """The results of the original models."""
    said = [f"{row['model']} {row.get('task', '')} {figure(row)}" for row in rows if row["baseline"] == "true"]
    return "Original: " + "; ".join(" ".join(text.split()) for text in said) + "."


def compressed(rows: Sequence[Row], **same: str) -> list[Row]:
    """The cells that are not originals and have these values."""
    return [
        row for row in rows if row["baseline"] != "true" and all(row[name] == value for name, value in same.items())
    ]


def drone(rows: Sequence[Row]) -> list[str]:
    """Three rank rules and six selectors on five tasks."""
    named = [{**row, "recipe": f"{row['recipe']} {row['drop']}".strip()} for row in rows]
    return [original(rows), "", *grid(compressed(named), ("recipe",), "task", figure)]


def ranks(rows: Sequence[Row]) -> list[str]:
    """Five methods at four ranks, with and without training."""
    parts = [original(rows), ""]
    for then, said in {"nothing": "As compressed", "finetune": "Fine-tuned"}.items():
        here = compressed(rows, then=then)
        parts += [f"{said}: accuracy, and KL to the original in nats, by rank", ""]
        parts += grid(here, ("method",), "rank", lambda row: f"{figure(row)}, {divergence(row)}")
    return parts


def l1(rows: Sequence[Row]) -> list[str]:
    """Five sparsities of three kinds of model: quality, milliseconds of 8 × 64 tokens, seconds to prune and train."""
    return [
        original(rows),
        "",
        *grid(compressed(rows), ("model", "then"), "sparsity", figure),
        "Milliseconds of a pass over 8 × 64 tokens (and of the original: "
        + "; ".join(f"{row['model']} {milliseconds(row)}" for row in rows if row["baseline"] == "true")
        + ") / seconds to prune and train:",
        "",
        *grid(
            compressed(rows),
            ("model", "then"),
            "sparsity",
            lambda row: f"{milliseconds(row)} / {float(row['compress_seconds']):.1f}",
        ),
    ]


def milliseconds(row: Row) -> str:
    """The median time of eight texts of 64 tokens."""
    return f"{1e3 * float(row['latency 8x64']):.1f}"


def width(rows: Sequence[Row]) -> list[str]:
    """Heads and channels; a student, and int8."""
    narrowed = compressed(rows, method="narrow")
    others = [row for row in rows if row["method"] != "narrow"]
    return [
        "Accuracy, and KL to the original in nats, by the share of heads (down) and of channels (across):",
        "",
        *grid(narrowed, ("heads",), "channels", lambda row: f"{figure(row)}, {divergence(row)}"),
        "",
        "| | accuracy | file, MB | ms of 1 × 64 | ms of 8 × 64 |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {row['method']} | {figure(row)} | {float(row['file_bytes']) / 1e6:.1f} "
            f"| {1e3 * float(row['latency 1x64']):.1f} | {milliseconds(row)} |"
            for row in others
        ),
        "",
    ]


def knowledge(rows: Sequence[Row]) -> list[str]:
    """Zeros, int8 and both, for four groups of matrices: LAMA scores, and KL to the original."""
    named = [{**row, "sparsity": row["sparsity"] or "no zeros"} for row in rows]
    asked = [row for row in named if row["task"].startswith("lama")]
    others = [row for row in named if row["task"].startswith("harness")]
    return [
        f"{original(asked)} P@10 of T-REx, and KL to the original in nats, by the share of zeros:",
        "",
        *grid(compressed(asked), ("method", "targets"), "sparsity", lambda row: f"{figure(row)}, {divergence(row)}"),
        f"{original(others)} KL to the original on the texts of BoolQ / PIQA / Winogrande:",
        "",
        *grid(_together(compressed(others)), ("method", "targets"), "sparsity", lambda row: row["kl"]),
    ]


def _together(rows: Sequence[Row]) -> list[Row]:
    """One row for all tasks of a variant, with the divergence on each."""
    variants: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        variants.setdefault((row["method"], row["targets"], row["sparsity"]), []).append(row)
    return [{**here[0], "kl": " / ".join(f"{float(row['kl']):.2g}" for row in here)} for here in variants.values()]


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = dict(
    zip(STUDIES, (drone, ranks, l1, width, knowledge), strict=True)
)
