"""Tables of what was measured: quality, change, distance, cost, and size against quality.

They are made from the JSON of `laconic evaluate`. `evaluation_remarks` says how to read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from laconic.evaluate.paired import MIN_DISCORDANT, Verdict, verdict
from laconic.report.engine import engine_tables
from laconic.report.tables import MEGABYTE, Column, Table

FIGURE = "{:.4f}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One compressed model on the trade-off between size and quality.

    Args:
        method: its name in tables and figures.
        keep: fraction of bytes that was requested; 1 for the original.
        nbytes: bytes of the compressed matrices.
        dense_nbytes: bytes of these matrices in the original.
        file_bytes: bytes of all weights.
        kl: divergence from the original, in nats per prediction, or another distance where 0 is best.
        agreement: fraction of the predictions that are the same as the original's.
        latency: seconds for one batch.

    Example:
        >>> Point(method="svd", keep=0.5, nbytes=49, dense_nbytes=100, file_bytes=80, kl=0.1, agreement=0.9,
        ...       latency=0.02).kept
        0.49
    """

    method: str
    keep: float
    nbytes: int
    dense_nbytes: int
    file_bytes: int
    kl: float
    agreement: float
    latency: float

    @property
    def kept(self) -> float:
        """The bytes of the compressed matrices as a fraction of their bytes in the original."""
        return self.nbytes / self.dense_nbytes


def trade_off_table(points: Sequence[Point], original: Point, kl: str, agreement: str) -> Table:
    """A table of compressed models below their original: method, quality and size first, then time.

    Args:
        points: the compressed models.
        original: the model that they were made from.
        kl: heading for `Point.kl`.
        agreement: heading for `Point.agreement`.
    """
    return Table.of(
        (original, *points),
        (Column("method"), lambda point: point.method),
        (Column(kl, FIGURE), lambda point: point.kl),
        (Column(agreement, "{:.1%}"), lambda point: point.agreement),
        (Column("model MB", "{:.1f}"), lambda point: point.file_bytes / MEGABYTE),
        (Column("keep", "{:.2f}"), lambda point: point.keep),
        (Column("matrices MB", "{:.1f}"), lambda point: point.nbytes / MEGABYTE),
        (Column("ms per batch", "{:.0f}"), lambda point: point.latency * 1e3),
        (Column("speed-up", "{:.2f}×"), lambda point: original.latency / point.latency),
    )


def evaluation_tables(result: dict[str, Any]) -> dict[str, Table]:
    """Tables of quality, change against the original, fidelity and cost.

    Args:
        result: `Evaluation.to_json`.

    Returns:
        The tables by title, in the order to show them. There are only tables of what was measured.
    """
    tables: dict[str, Table] = {}
    if result["results"]:
        tables["Quality"] = Table.of(
            _figures(result["results"]),
            (Column("task"), lambda row: row[0]),
            (Column("metric"), lambda row: row[1]),
            (Column("value", FIGURE), lambda row: row[2]["value"]),
            (Column("95 % interval"), lambda row: _interval(row[2]["low"], row[2]["high"])),
        )
    if result.get("difference"):
        tables["Change against the original"] = _change(result)
    if "fidelity" in result:
        tables["Distance to the original"] = Table.of(
            [result["fidelity"]],
            (Column("KL, nats", FIGURE), lambda distance: distance["kl"]),
            (Column("95 % interval"), lambda distance: _interval(distance["kl_low"], distance["kl_high"])),
            (Column("same prediction", "{:.1%}"), lambda distance: distance["top1_agreement"]),
            (Column("cosine", FIGURE), lambda distance: distance.get("cosine")),
            (Column("predictions", "{:,d}"), lambda distance: distance["predictions"]),
        )
    if "cost" in result:
        costs = {"this model": result["cost"]}
        original = result.get("original", {}).get("cost")
        if original is not None:
            costs["original"] = original
        tables |= cost_tables(costs) if "parts" in result["cost"] else engine_tables(costs)
    return tables


def evaluation_remarks(result: dict[str, Any]) -> list[str]:
    """Remarks on the tables: rows that are also in the calibration data, missing measurements, meaning of verdicts.

    Args:
        result: `Evaluation.to_json`.
    """
    remarks = [
        f"{rows} of the {settings['rows']} rows of {task} are also rows of {source}, which the model was calibrated on."
        for task, settings in result["settings"].items()
        for source, rows in settings.get("calibration_rows", {}).items()
        if rows
    ]
    if vectors := result.get("fidelity", {}).get("vectors"):
        remarks.append(f"Distances are between vectors of texts: {vectors}.")
    if note := result.get("fidelity", {}).get("note"):
        remarks.append(f"KL is {note}.")
    remarks += result.get("cost", {}).get("missing", [])
    if memory := result.get("cost", {}).get("memory"):
        remarks.append(f"Memory is the {memory}.")
    verdicts = {
        verdict(change["p"], result["least_p"][task][metric])
        for task, metric, change in _figures(result.get("difference", {}))
    }
    if Verdict.CANNOT_TELL in verdicts:
        remarks.append(
            "Cannot tell: on so few rows no change, however large, can be significant (p < 0.05); evaluate on "
            f"{MIN_DISCORDANT} rows at least, and on hundreds to see small changes."
        )
    if Verdict.NOISE in verdicts:
        remarks.append(
            "Noise: the change is not significant (p ≥ 0.05). Detectable is the smallest true change that is "
            "significant on these rows in four cases of five."
        )
    return remarks


def _figures(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, dict[str, float]]]:
    """(task, metric, figure) of every metric."""
    return [(task, metric, figure) for task, metrics in results.items() for metric, figure in metrics.items()]


def _change(result: dict[str, Any]) -> Table:
    """The change of each metric with its interval, its p-value and the verdict."""
    least_p, detectable = result["least_p"], result["detectable"]
    return Table.of(
        _figures(result["difference"]),
        (Column("task"), lambda row: row[0]),
        (Column("metric"), lambda row: row[1]),
        (Column("change", "{:+.4f}"), lambda row: row[2]["value"]),
        (Column("95 % interval"), lambda row: _interval(row[2]["low"], row[2]["high"])),
        (Column("p", "{:.3f}"), lambda row: row[2]["p"]),
        (Column("verdict"), lambda row: _verdict(row[2], least_p[row[0]][row[1]])),
        (Column("detectable", "±{:.4f}"), lambda row: detectable[row[0]][row[1]]),
    )


def _verdict(change: dict[str, float], least_p: float) -> str:
    """The verdict on a change, in words."""
    judgement = verdict(change["p"], least_p)
    equal = change["value"] == change["low"] == change["high"] == 0
    return "no change" if equal and judgement is Verdict.NOISE else judgement.value


def _interval(low: float, high: float) -> str:
    return f"{low:.4f} – {high:.4f}"


def cost_tables(costs: dict[str, Any]) -> dict[str, Table]:
    """Tables of size, bytes by part, speed of forward passes and of generation, and kernels.

    Args:
        costs: `Cost.to_json` of each model, by its name; all measured in the runtime of the first.

    Returns:
        The tables by title, in the order to show them.
    """
    first = next(iter(costs.values()))
    model = Column("model"), lambda row: row[0]
    # Of a mixture of experts a token uses only a part.
    active = Column("active parameters", "{:,d}"), lambda row: row[1].get("active_parameters")
    tables = {
        "Size": Table.of(
            costs.items(),
            model,
            (Column("parameters", "{:,d}"), lambda row: row[1]["parameters"]),
            *((active,) if any("active_parameters" in cost for cost in costs.values()) else ()),
            (Column("file MB", "{:.2f}"), lambda row: row[1]["bytes"] / MEGABYTE),
            (Column("memory MB", "{:.2f}"), lambda row: row[1]["memory_bytes"] / MEGABYTE),
        ),
        "Megabytes by part": Table.of(
            costs.items(),
            model,
            *(
                (Column(part, "{:.2f}"), lambda row, part=part: row[1]["parts"][part] / MEGABYTE)
                for part in first["parts"]
            ),
        ),
        f"Speed of one forward pass{_runtime_note(first['runtime'])}": _speed(costs),
    }
    if any("generation" in cost for cost in costs.values()):
        tables["Speed of generation"] = _generation(costs)
    # The kernels that quantized layers used, with the number of layers.
    kernels = [
        (name, label, kernel, layers, cost["machine"]["instructions"])
        for name, cost in costs.items()
        for label in ("int8", "int4", "codes")
        for kernel, layers in cost.get("machine", {}).get(label, {}).items()
    ]
    if kernels:
        columns = tuple(map(Column, ("model", "bits", "kernel by rows", "layers", "instructions")))
        tables["Kernels that were fastest here"] = Table(columns, tuple(kernels))
    return tables


def _runtime_note(runtime: dict[str, Any]) -> str:
    """The runtime, in parentheses; empty for torch."""
    if runtime["name"] == "eager":
        return ""
    size = f", {runtime['bytes'] / MEGABYTE:.2f} MB" if "bytes" in runtime else ""
    return f" ({runtime['name']}: {runtime['library']}{size})"


def _speed(costs: dict[str, Any]) -> Table:
    table = Table.of(
        [(name, speed) for name, cost in costs.items() for speed in cost["latency"]],
        (Column("model"), lambda row: row[0]),
        (Column("batch × length"), lambda row: _pass_size(row[1])),
        (Column("ms", "{:.1f}"), lambda row: 1e3 * row[1]["median"]),
        (Column("quartiles"), lambda row: _quartiles(row[1], 1)),
        (Column("tokens/s", "{:,.0f}"), lambda row: row[1]["throughput"]),
        (Column("MMACs/token", "{:.2f}", 1e-6), lambda row: row[1]["macs_per_token"]),
        (Column("peak MB", "{:.1f}", 1 / MEGABYTE), lambda row: row[1]["peak_bytes"]),
        (Column("joules", "{:.3g}"), lambda row: row[1].get("joules")),
    )
    metered = any("joules" in speed for cost in costs.values() for speed in cost["latency"])
    return table if metered else Table(table.columns[:-1], tuple(row[:-1] for row in table.rows))


def _pass_size(speed: dict[str, Any]) -> str:
    """Rows and tokens, with the number of choices between them if there are several."""
    choices = f"{speed['choices']} choices × " if "choices" in speed else ""
    return f"{speed['batch']} × {choices}{speed['length']}"


def _generation(costs: dict[str, Any]) -> Table:
    """Speed of generation; tokens per second are of all rows together, by the median."""
    return Table.of(
        [(name, timing) for name, cost in costs.items() for timing in cost.get("generation", [])],
        (Column("model"), lambda row: row[0]),
        (Column("batch × prompt + new"), lambda row: "{batch} × {prompt} + {new}".format(**row[1])),
        (Column("prefill ms", "{:.1f}"), lambda row: 1e3 * row[1]["prefill"]["median"]),
        (Column("prefill tokens/s", "{:,.0f}"), lambda row: row[1]["prefill_tokens_per_second"]),
        (Column("ms a token", "{:.2f}"), lambda row: 1e3 * row[1]["step"]["median"]),
        (Column("quartiles"), lambda row: _quartiles(row[1]["step"], 2)),
        (Column("decode tokens/s", "{:,.0f}"), lambda row: row[1]["decode_tokens_per_second"]),
    )


def _quartiles(seconds: dict[str, float], digits: int) -> str:
    """The quartiles in milliseconds."""
    return " – ".join(f"{1e3 * seconds[name]:.{digits}f}" for name in ("lower_quartile", "upper_quartile"))
