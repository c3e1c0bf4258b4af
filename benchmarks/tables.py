"""Write the low-rank tables and figures from benchmarks/results/.

docs/figures/index.md has a summary between two comments; docs/figures/low-rank.md and docs/figures/low-rank-*.png have
all results.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from matplotlib.figure import Figure

from benchmarks.common import RESULTS, short_quality, spread
from benchmarks.lowrank import CALIBRATION_ROWS, CELLS, KEEPS, METRICS, MODELS, TIMED, VARIANTS
from laconic.report import plots
from laconic.report.evaluation import Point

ROOT = Path(__file__).parents[1]
MORE_ROWS = 512
# Only as many lines as a reader can distinguish; the others lie on or between them.
DRAWN = ("svd", "wlra", "drone", "kfac-svd", "kfac-svd + spectrum", "… + anchored")
PREDICTION = """## How well the loss is predicted

`python -m benchmarks loss_prediction` replaces one matrix of minilm-sst2 at a time (by `drone`, at 30 % of its bytes).
It compares the true KL on the development set with the prediction from 128 training rows. Spearman's correlation
over the {matrices} matrices is **{predicted:.2f}** for ½ tr(F E C Eᵀ), and {output_error:.2f} for ½ tr(E C Eᵀ), the
error of the layer's own output, which uses no gradients. The prediction ranks the matrices. It is no forecast in
nats, because it leaves out that errors at different tokens of a text add up: at the median the true KL is {ratio:.1f}
times as large.
"""
BEGIN, END = "<!-- made by `python -m benchmarks tables` -->", "<!-- end of what was made -->"


def main(argv: Sequence[str]) -> None:
    """Write the tables into docs/figures/index.md and docs/figures/low-rank.md, and the figures beside the latter."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    quality = CELLS.where(rows=CALIBRATION_ROWS)
    timing = json.loads((RESULTS / "latency.json").read_text())["rows"]
    for name in MODELS:
        plots.save(figure(name, _of(quality, name)), ROOT / f"docs/figures/low-rank-{name}")
    replace_between(
        ROOT / "docs/figures/index.md", "\n".join(summary(name, _of(quality, name), timing) for name in MODELS)
    )
    parts = [everything(name, _of(quality, name), timing) for name in MODELS]
    replace_between(ROOT / "docs/figures/low-rank.md", "\n".join([*parts, more_rows(), predicted_loss()]))


def summary(name: str, mine: list[dict], timing: list[dict]) -> str:
    """KL / metric of every variant at every size, and bytes and time of the last variant."""
    lines = [
        f"**{name}** ({METRICS[name]} {mine[0]['dense_metric']:.3f} dense, "
        f"{timing[0]['dense_file_bytes'] / 1e6:.1f} MB): KL to the dense model / {METRICS[name]}, by bytes kept",
        "",
        f"| | {' | '.join(str(keep) for keep in KEEPS)} |",
        "|---|" + "---|" * len(KEEPS),
    ]
    least = {keep: min(VARIANTS, key=lambda variant, keep=keep: _mean_kl(mine, variant, keep)) for keep in KEEPS}
    for variant in VARIANTS:
        entries = [short_quality(_at(mine, variant, keep), bold=variant == least[keep]) for keep in KEEPS]
        lines.append(f"| {variant} | {' | '.join(entries)} |")
    costs = [_timed(timing, name, TIMED[-1], keep) for keep in KEEPS]
    megabytes = [f"{cost['file_bytes'] / 1e6:.1f}" for cost in costs]
    times = [f"{_milliseconds(cost)} ({_speed_up(cost)})" for cost in costs]
    lines += [f"| *MB on disk* | {' | '.join(megabytes)} |", f"| *milliseconds* | {' | '.join(times)} |"]
    return "\n".join([*lines, ""])


def everything(name: str, mine: list[dict], timing: list[dict]) -> str:
    """One row for each cell, with spreads over the calibration seeds; then bytes and time."""
    lines = [
        f"## {name}",
        "",
        f"![KL against bytes kept](low-rank-{name}.png)",
        "",
        f"| keep | method | KL, nats | {METRICS[name]} | matrices, MB |",
        "|---|---|---:|---:|---:|",
    ]
    for keep in KEEPS:
        for variant in VARIANTS:
            here = _at(mine, variant, keep)
            kls, metrics = (
                spread([cell[name] for cell in here], digits) for name, digits in (("kl", 5), ("metric", 3))
            )
            lines.append(f"| {keep} | {variant} | {kls} | {metrics} | {mean(c['bytes'] for c in here) / 1e6:.2f} |")
    lines += [
        "",
        f"Bytes and time depend on the ranks alone: *uniform* stands for `{TIMED[0]}` and every other line without "
        f"`spectrum`, *spectrum* for `{TIMED[1]}`.",
        "",
        "| keep | ranks | file, MB | ms | dense, ms | speed-up |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for keep in KEEPS:
        for variant, ranks in zip(TIMED, ("uniform", "spectrum"), strict=True):
            cost = _timed(timing, name, variant, keep)
            lines.append(
                f"| {keep} | {ranks} | {cost['file_bytes'] / 1e6:.1f} | {_milliseconds(cost)} "
                f"| {cost['dense_ms'][1]:.0f} | {_speed_up(cost)} |"
            )
    return "\n".join([*lines, ""])


def more_rows() -> str:
    """The table of calibration on more rows, if that was measured."""
    mine = CELLS.where(rows=MORE_ROWS)
    if not mine:
        return ""
    name = mine[0]["model"]
    keeps = sorted({cell["keep"] for cell in mine}, reverse=True)
    variants = [variant for variant in VARIANTS if any(cell["way"] == variant for cell in mine)]
    asked = " ".join(f'"{variant}"' for variant in variants)
    lines = [
        f"## {name}, calibrated on {MORE_ROWS} rows",
        "",
        f"`python -m benchmarks lowrank_quality --only {name} --rows {MORE_ROWS} --keeps {keeps[0]} {keeps[-1]} "
        f"--ways {asked}`; {METRICS[name]} of the dense model {mine[0]['dense_metric']:.4f}.",
        "",
        f"| keep | method | KL, nats | {METRICS[name]} |",
        "|---|---|---:|---:|",
    ]
    for keep in keeps:
        for variant in variants:
            here = _at(mine, variant, keep)
            kls, metrics = [cell["kl"] for cell in here], [cell["metric"] for cell in here]
            lines.append(f"| {keep} | {variant} | {spread(kls, 4)} | {spread(metrics, 4)} |")
    return "\n".join([*lines, ""])


def predicted_loss() -> str:
    """The section on the rank correlation of the predicted loss with the true KL."""
    measured = json.loads((RESULTS / "loss_prediction.json").read_text())
    ratio = median(row["kl"] / row["predicted"] for row in measured["matrices"])
    return PREDICTION.format(
        matrices=len(measured["matrices"]),
        predicted=measured["spearman_predicted"],
        output_error=measured["spearman_output_error"],
        ratio=ratio,
    )


def figure(name: str, mine: list[dict]) -> Figure:
    """KL against the bytes that were kept, one line for each variant; each mark is the mean over the seeds."""
    points = [
        Point(
            method=variant,
            keep=keep,
            nbytes=round(mean(cell["bytes"] for cell in _at(mine, variant, keep))),
            dense_nbytes=mine[0]["dense_bytes"],
            file_bytes=0,
            kl=_mean_kl(mine, variant, keep),
            agreement=float("nan"),
            latency=float("nan"),
        )
        for variant in DRAWN
        for keep in KEEPS
    ]
    return plots.trade_off(points, f"KL to the dense {name}, nats")


def replace_between(path: Path, text: str, begin: str = BEGIN) -> None:
    """Replace the text between two comments of the Markdown file at `path`; `begin` is the first comment."""
    whole = path.read_text()
    start = whole.index(begin)
    end = whole.index(END, start)
    before, after = whole[:start], whole[end + len(END) :]
    path.write_text(f"{before}{begin}\n\n{text}\n{END}{after}")


def _of(quality: list[dict], name: str) -> list[dict]:
    return [cell for cell in quality if cell["model"] == name]


def _at(mine: list[dict], variant: str, keep: float) -> list[dict]:
    return [cell for cell in mine if cell["way"] == variant and cell["keep"] == keep]


def _mean_kl(mine: list[dict], variant: str, keep: float) -> float:
    return mean(cell["kl"] for cell in _at(mine, variant, keep))


def _timed(timing: list[dict], name: str, variant: str, keep: float) -> dict:
    (row,) = [row for row in timing if (row["model"], row["way"], row["keep"]) == (name, variant, keep)]
    return row


def _speed_up(cost: dict) -> str:
    return f"{cost['dense_ms'][1] / cost['ms'][1]:.2f}×"


def _milliseconds(cost: dict) -> str:
    return f"{cost['ms'][1]:.0f}"
