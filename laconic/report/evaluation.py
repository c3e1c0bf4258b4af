"""The JSON of `laconic evaluate` as tables of quality, distance and cost, and what they have to be read with."""

from typing import Any

from laconic.evaluate.paired import FEWEST, Verdict, verdict
from laconic.report.costs import cost_tables
from laconic.report.tables import Column, Table

FIGURE = "{:.4f}"


def tables_of(result: dict[str, Any]) -> dict[str, Table]:
    """By title, in the order to show them; sections that were not measured are left out."""
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


def remarks_of(result: dict[str, Any]) -> list[str]:
    """What the figures have to be read with: rows that the model was calibrated on, what is missing, what noise is."""
    remarks = [
        f"{rows} of the {settings['rows']} rows of {task} are also rows of {source}, which the model was calibrated on."
        for task, settings in result["settings"].items()
        for source, rows in settings.get("calibration_rows", {}).items()
        if rows
    ]
    if vectors := result.get("fidelity", {}).get("vectors"):
        remarks.append(f"Distances are between vectors of texts: {vectors}.")
    remarks += result.get("cost", {}).get("missing", [])
    said = {
        verdict(change["p"], result["least_p"][task][metric])
        for task, metrics in result.get("difference", {}).items()
        for metric, change in metrics.items()
    }
    if Verdict.CANNOT_TELL in said:
        remarks.append(
            f"Cannot tell: on so few rows chance alone brings about any change, however large, in one of twenty "
            f"comparisons or more; judge on {FEWEST} rows at least, and on hundreds to see small changes."
        )
    if Verdict.NOISE in said:
        remarks.append(
            "Noise: as large a change comes about by chance in more than one of twenty comparisons of equal models. "
            "What would have shown is the smallest true change that these rows tell from chance in four cases of five."
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
    """What each metric gained or lost, the chance of as much by luck, and what that says."""
    columns = (
        Column("task"),
        Column("metric"),
        Column("change", "{:+.4f}"),
        Column("95 % interval"),
        Column("p", "{:.3f}"),
        Column("which is"),
        Column("would have shown", "±{:.4f}"),
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
    """What the change says, in words."""
    said = verdict(change["p"], least_p)
    none = change["value"] == change["low"] == change["high"] == 0
    return "no change" if none and said is Verdict.NOISE else said.value


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
