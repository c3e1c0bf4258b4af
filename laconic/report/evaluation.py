"""The JSON of `laconic evaluate` and `laconic export` as tables, and remarks on how to read them."""

from typing import Any

from laconic.evaluate.paired import MIN_DISCORDANT, Verdict, verdict
from laconic.report.costs import MEGABYTE, cost_tables
from laconic.report.tables import Column, Table

FIGURE = "{:.4f}"


def evaluation_tables(result: dict[str, Any]) -> dict[str, Table]:
    """Tables of quality, change against the original, fidelity and cost.

    Args:
        result: `Evaluation.to_json`.

    Returns:
        The tables by title, in the order to show them. There are only tables of what was measured.
    """
    tables = {"Quality": _quality(result["results"])} if result["results"] else {}
    if result.get("difference"):
        tables["Change against the original"] = _change(result)
    if "fidelity" in result:
        tables["Distance to the original"] = _fidelity(result["fidelity"])
    if "cost" in result:
        costs = {"this model": result["cost"]}
        original = result.get("original", {}).get("cost")
        if original is not None:
            costs["original"] = original
        tables |= cost_tables(costs)
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
    remarks += result.get("cost", {}).get("missing", [])
    verdicts = {
        verdict(change["p"], result["least_p"][task][metric])
        for task, metrics in result.get("difference", {}).items()
        for metric, change in metrics.items()
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


def _quality(results: dict[str, Any]) -> Table:
    """Each metric with its 95 % interval."""
    columns = (Column("task"), Column("metric"), Column("value", FIGURE), Column("95 % interval"))
    rows = [
        (task, metric, figure["value"], _interval(figure))
        for task, metrics in results.items()
        for metric, figure in metrics.items()
    ]
    return Table(columns, tuple(rows))


def _change(result: dict[str, Any]) -> Table:
    """The change of each metric with its interval, its p-value and the verdict."""
    columns = (
        Column("task"),
        Column("metric"),
        Column("change", "{:+.4f}"),
        Column("95 % interval"),
        Column("p", "{:.3f}"),
        Column("verdict"),
        Column("detectable", "±{:.4f}"),
    )
    rows = [
        (
            task,
            metric,
            figure["value"],
            _interval(figure),
            figure["p"],
            _verdict(figure, result["least_p"][task][metric]),
            result["detectable"][task][metric],
        )
        for task, metrics in result["difference"].items()
        for metric, figure in metrics.items()
    ]
    return Table(columns, tuple(rows))


def _verdict(change: dict[str, float], least_p: float) -> str:
    """The verdict on a change, in words."""
    found = verdict(change["p"], least_p)
    none = change["value"] == change["low"] == change["high"] == 0
    return "no change" if none and found is Verdict.NOISE else found.value


def _fidelity(found: dict[str, Any]) -> Table:
    columns = (
        Column("KL, nats", FIGURE),
        Column("95 % interval"),
        Column("same prediction", "{:.1%}"),
        Column("cosine", FIGURE),
        Column("predictions", "{:,d}"),
    )
    interval = _interval({"low": found["kl_low"], "high": found["kl_high"]})
    return Table(
        columns, ((found["kl"], interval, found["top1_agreement"], found.get("cosine"), found["predictions"]),)
    )


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['low']:.4f} – {figure['high']:.4f}"


def export_lines(outcome: dict[str, Any]) -> tuple[str, ...]:
    """Lines about an exported model: its file, its size, its inputs, and its difference from torch.

    Args:
        outcome: the JSON of `laconic export`.
    """
    found = outcome["agreement"]
    return (
        f"{outcome['output']}/{outcome['file']} for {outcome['library']}: {outcome['bytes'] / MEGABYTE:.2f} MB "
        f"({outcome['stored_bytes'] / MEGABYTE:.2f} MB as laconic stores it), made in {outcome['seconds']:.1f} s",
        f"Inputs: {', '.join(outcome['inputs'])}; outputs: {', '.join(outcome['outputs'])}; any batch and length",
        f"Agrees with torch on {found['rows']} rows in {found['batches']} batches: off by {found['error']:.1e} of the "
        f"largest output at most",
    )


def export_table(outcome: dict[str, Any]) -> Table:
    """A table of quantized layers by the operator that replaced them in the exported file.

    Args:
        outcome: the JSON of `laconic export`.
    """
    columns = (
        Column("layers of codes are"),
        Column("layers", "{:d}"),
        Column("MB", "{:.2f}"),
        Column("as stored, MB", "{:.2f}"),
    )
    rows = tuple(
        (kind, layers["count"], layers["bytes"] / MEGABYTE, layers["stored_bytes"] / MEGABYTE)
        for kind, layers in outcome["layers"].items()
    )
    return Table(columns, rows)
