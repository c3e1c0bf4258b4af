"""The tables and the figure of README.md and docs/lowrank.md, made from benchmarks/results/.

README.md carries a summary between two comments; docs/lowrank.md and docs/lowrank-*.png hold everything.
"""

import argparse
import json
from collections.abc import Sequence
from math import floor, log10
from pathlib import Path
from statistics import mean, median, stdev

from matplotlib.figure import Figure

from benchmarks.common import RESULTS
from benchmarks.lowrank import CALIBRATION_ROWS, KEEPS, METRICS, MODELS, WAYS
from benchmarks.lowrank_quality import cells
from laconic.report import plots
from laconic.report.points import Point

ROOT = Path(__file__).parents[1]
MORE_ROWS = 256
PREDICTION = """## How well the loss is predicted

`python -m benchmarks loss_prediction` replaces one matrix of minilm-sst2 at a time (by `drone`, at 30 % of its bytes)
and ranks the true KL on the development set against the prediction from 128 training rows. Spearman's correlation
over the {matrices} matrices is **{predicted:.2f}** for ½ tr(F E C Eᵀ), and {output_error:.2f} for ½ tr(E C Eᵀ), the
error of the layer's own output, which knows no gradients. The prediction orders the matrices; it is no forecast in
nats, because it leaves out how errors at different tokens of a text add up: at the median the true KL is {ratio:.1f}
times as large.
"""
BEGIN, END = "<!-- made by `python -m benchmarks tables` -->", "<!-- end of what was made -->"


def main(argv: Sequence[str]) -> None:
    """Write the tables into README.md and docs/lowrank.md, and the figures beside the latter."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    quality = [cell for cell in cells() if cell["rows"] == CALIBRATION_ROWS]
    timing = json.loads((RESULTS / "latency.json").read_text())
    for name in MODELS:
        mine = [cell for cell in quality if cell["model"] == name]
        plots.save(figure(name, mine, timing), ROOT / f"docs/lowrank-{name}")
    replace_between(ROOT / "README.md", "\n".join(summary(name, quality, timing) for name in MODELS))
    parts = [everything(name, quality, timing) for name in MODELS]
    replace_between(ROOT / "docs/lowrank.md", "\n".join([*parts, more_rows(), predicted_loss()]))


def summary(name: str, quality: list[dict], timing: dict) -> str:
    """KL / metric of every way at every size, and what the last way costs."""
    mine = [cell for cell in quality if cell["model"] == name]
    best = list(WAYS)[-1]
    lines = [
        f"**{name}** ({METRICS[name]} {mine[0]['dense_metric']:.3f} dense, "
        f"{_timed(timing, name, best, KEEPS[0])['dense_file_bytes'] / 1e6:.1f} MB): KL to the dense model / "
        f"{METRICS[name]}",
        "",
        f"| keep | {' | '.join(WAYS)} | on disk, MB | ms (speed-up) |",
        "|---|" + "---|" * len(WAYS) + "---:|---:|",
    ]
    for keep in KEEPS:
        kls = {way: mean(cell["kl"] for cell in _at(mine, way, keep)) for way in WAYS}
        least = min(kls, key=lambda way: kls[way])
        entries = [_short(kls[way], _at(mine, way, keep), bold=way == least) for way in WAYS]
        cost = _timed(timing, name, best, keep)
        size, speed = f"{cost['file_bytes'] / 1e6:.1f}", f"{_milliseconds(cost)} ({_speed_up(cost)})"
        lines.append(f"| {keep} | {' | '.join(entries)} | {size} | {speed} |")
    return "\n".join([*lines, ""])


def everything(name: str, quality: list[dict], timing: dict) -> str:
    """One row a cell, with spreads over the calibration seeds."""
    mine = [cell for cell in quality if cell["model"] == name]
    lines = [
        f"## {name}",
        "",
        f"![KL against bytes kept](lowrank-{name}.png)",
        "",
        f"| keep | method | KL, nats | {METRICS[name]} | matrices, MB | file, MB | ms | speed-up |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for keep in KEEPS:
        for way in WAYS:
            here, cost = _at(mine, way, keep), _timed(timing, name, way, keep)
            lines.append(
                f"| {keep} | {way} | {_spread([c['kl'] for c in here], 5)} | {_spread([c['metric'] for c in here], 3)} "
                f"| {mean(c['bytes'] for c in here) / 1e6:.2f} | {cost['file_bytes'] / 1e6:.1f} "
                f"| {_milliseconds(cost)} | {_speed_up(cost)} |"
            )
    return "\n".join([*lines, ""])


def more_rows() -> str:
    """What calibrating the last way on 256 rows gives, where that was measured."""
    best = list(WAYS)[-1]
    mine = [cell for cell in cells() if cell["rows"] == MORE_ROWS and cell["way"] == best]
    if not mine:
        return ""
    name = mine[0]["model"]
    lines = [
        f"## {best} on {name}, calibrated on {MORE_ROWS} rows",
        "",
        f'`python -m benchmarks lowrank_quality --only {name} --rows {MORE_ROWS} --ways "{best}"`',
        "",
        f"| keep | KL, nats | {METRICS[name]} |",
        "|---|---:|---:|",
    ]
    for keep in KEEPS:
        here = _at(mine, best, keep)
        kls, metrics = [cell["kl"] for cell in here], [cell["metric"] for cell in here]
        lines.append(f"| {keep} | {_spread(kls, 4)} | {_spread(metrics, 3)} |")
    return "\n".join([*lines, ""])


def predicted_loss() -> str:
    """The rank correlations of the loss that `spectrum` rests on."""
    measured = json.loads((RESULTS / "loss_prediction.json").read_text())
    ratio = median(row["kl"] / row["predicted"] for row in measured["matrices"])
    return PREDICTION.format(
        matrices=len(measured["matrices"]),
        predicted=measured["spearman_predicted"],
        output_error=measured["spearman_output_error"],
        ratio=ratio,
    )


def figure(name: str, mine: list[dict], timing: dict) -> Figure:
    """KL against the bytes really kept, one line a way; each mark is the mean over the seeds."""
    points = []
    for way in WAYS:
        for keep in KEEPS:
            here, cost = _at(mine, way, keep), _timed(timing, name, way, keep)
            points.append(
                Point(
                    method=way,
                    keep=keep,
                    nbytes=round(mean(cell["bytes"] for cell in here)),
                    dense_nbytes=here[0]["dense_bytes"],
                    file_bytes=cost["file_bytes"],
                    kl=mean(cell["kl"] for cell in here),
                    agreement=float("nan"),
                    latency=cost["ms"][1] / 1000,
                )
            )
    return plots.trade_off(points, f"KL to the dense {name}, nats")


def replace_between(path: Path, text: str, begin: str = BEGIN) -> None:
    """Put `text` between the two comments of the Markdown file at `path`, of which `begin` says what made it."""
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{begin}\n\n{text}\n{END}{after}")


def _at(mine: list[dict], way: str, keep: float) -> list[dict]:
    return [cell for cell in mine if cell["way"] == way and cell["keep"] == keep]


def _timed(timing: dict, name: str, way: str, keep: float) -> dict:
    (row,) = [row for row in timing["rows"] if (row["model"], row["way"], row["keep"]) == (name, way, keep)]
    return row


def _short(kl: float, here: list[dict], bold: bool) -> str:
    text = f"{_digits(kl)} / {mean(cell['metric'] for cell in here):.3f}"
    return f"**{text}**" if bold else text


def _spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def _digits(kl: float) -> str:
    """Two digits that mean something, without an exponent."""
    places = 4 if kl >= 0.001 else 1 - floor(log10(max(kl, 1e-9)))
    return f"{kl:.{places}f}"


def _speed_up(cost: dict) -> str:
    return f"{cost['dense_ms'][1] / cost['ms'][1]:.2f}×"


def _milliseconds(cost: dict) -> str:
    return f"{cost['ms'][1]:.0f}"
