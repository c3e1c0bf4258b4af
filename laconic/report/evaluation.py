"""The JSON of `laconic evaluate` as tables: quality, distance to the original, size, speed."""

from typing import Any

from laconic.evaluate.paired import SIGNIFICANT
from laconic.report.points import MEGABYTE
from laconic.report.tables import Column, Table

FIGURE = "{:.4f}"
KERNEL_COLUMNS = (Column("model"), Column("codes"), Column("rows: kernel"), Column("layers"), Column("instructions"))


def tables_of(result: dict[str, Any]) -> dict[str, Table]:
    """By title, in the order to show them; sections that were not measured are left out."""
    tables = {"Quality": _quality(result["results"])} if result["results"] else {}
    if result.get("difference"):
        tables["Change against the original"] = _change(result["difference"], result.get("detectable", {}))
    if "fidelity" in result:
        tables["Distance to the original"] = _fidelity(result["fidelity"])
    if "cost" in result:
        costs = {"this model": result["cost"]}
        original = result.get("original", {}).get("cost")
        if original is not None:
            costs["original"] = original
        tables["Size"] = _size(costs)
        tables["Megabytes by part"] = _parts(costs)
        tables[f"Speed of one forward pass{_ran_by(result['cost'])}"] = _speed(costs)
        if any("generation" in cost for cost in costs.values()):
            tables["Speed of writing"] = _generation(costs)
        if kernels := _kernels(costs):
            tables["Kernels that were fastest here"] = Table(KERNEL_COLUMNS, tuple(kernels))
    return tables


def remarks_of(result: dict[str, Any]) -> list[str]:
    """What the figures have to be read with: rows that the model was calibrated on, and how noise is told."""
    remarks = [
        f"{rows} of the {settings['rows']} rows of {task} are also rows of {source}, which the model was calibrated on."
        for task, settings in result["settings"].items()
        for source, rows in settings.get("calibration_rows", {}).items()
        if rows
    ]
    if any(
        change["p"] >= SIGNIFICANT for metrics in result.get("difference", {}).values() for change in metrics.values()
    ):
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


def _change(difference: dict[str, Any], detectable: dict[str, Any]) -> Table:
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
            _verdict(figure),
            detectable.get(task, {}).get(metric),
        )
        for task, metrics in difference.items()
        for metric, figure in metrics.items()
    ]
    return Table(columns, tuple(rows))


def _verdict(change: dict[str, float]) -> str:
    """What the change says, in words: one that luck brings about in a case of twenty or more is noise."""
    if change["p"] < SIGNIFICANT:
        return "a real change"
    return "no change" if change["value"] == change["low"] == change["high"] == 0 else "noise"


def _fidelity(found: dict[str, Any]) -> Table:
    columns = (
        Column("KL, nats", FIGURE),
        Column("95 % interval"),
        Column("same prediction", "{:.1%}"),
        Column("cosine", FIGURE),
        Column("predictions", "{:,d}"),
    )
    interval = _interval({"low": found["kl_low"], "high": found["kl_high"]})
    return Table(columns, ((found["kl"], interval, found["top1_agreement"], found["cosine"], found["predictions"]),))


def _size(costs: dict[str, Any]) -> Table:
    columns = (
        Column("model"),
        Column("parameters", "{:,d}"),
        Column("file MB", "{:.2f}"),
        Column("memory MB", "{:.2f}"),
    )
    return Table(
        columns,
        tuple(
            (name, cost["parameters"], cost["bytes"] / MEGABYTE, cost["memory_bytes"] / MEGABYTE)
            for name, cost in costs.items()
        ),
    )


def _parts(costs: dict[str, Any]) -> Table:
    """Of the weights, in the dtype that they are stored in."""
    names = list(next(iter(costs.values()))["parts"])
    columns = (Column("model"), *(Column(name, "{:.2f}") for name in names))
    rows = tuple((name, *(cost["parts"][part] / MEGABYTE for part in names)) for name, cost in costs.items())
    return Table(columns, rows)


def _ran_by(cost: dict[str, Any]) -> str:
    """What ran the model, where that is not torch as it is."""
    runtime = cost["runtime"]
    if runtime["name"] == "eager":
        return ""
    size = f", {runtime['bytes'] / MEGABYTE:.2f} MB" if "bytes" in runtime else ""
    return f" ({runtime['name']}: {runtime['library']}{size})"


def _generation(costs: dict[str, Any]) -> Table:
    """Tokens a second of all rows together, of the medians."""
    columns = (
        Column("model"),
        Column("batch × prompt + new"),
        Column("prefill ms", "{:.1f}"),
        Column("prefill tokens/s", "{:,.0f}"),
        Column("ms a token", "{:.2f}"),
        Column("quartiles"),
        Column("decode tokens/s", "{:,.0f}"),
    )
    rows = tuple(
        (
            name,
            f"{one['batch']} × {one['prompt']} + {one['new']}",
            1e3 * one["prefill"]["median"],
            one["prefill_tokens_per_second"],
            1e3 * one["step"]["median"],
            f"{1e3 * one['step']['lower_quartile']:.2f} – {1e3 * one['step']['upper_quartile']:.2f}",
            one["decode_tokens_per_second"],
        )
        for name, cost in costs.items()
        for one in cost.get("generation", [])
    )
    return Table(columns, rows)


def _speed(costs: dict[str, Any]) -> Table:
    counted = any("joules" in speed for cost in costs.values() for speed in cost["latency"])
    columns = (
        Column("model"),
        Column("batch × length"),
        Column("ms", "{:.1f}"),
        Column("quartiles"),
        Column("tokens/s", "{:,.0f}"),
        Column("MMACs/token", "{:.2f}"),
        Column("peak MB", "{:.1f}"),
        *([Column("joules", "{:.3g}")] if counted else []),
    )
    rows = tuple(
        (
            name,
            f"{speed['batch']} × {speed['length']}",
            1e3 * speed["median"],
            f"{1e3 * speed['lower_quartile']:.1f} – {1e3 * speed['upper_quartile']:.1f}",
            speed["throughput"],
            speed["macs_per_token"] / 1e6,
            None if speed["peak_bytes"] is None else speed["peak_bytes"] / MEGABYTE,
            *([speed.get("joules")] if counted else []),
        )
        for name, cost in costs.items()
        for speed in cost["latency"]
    )
    return Table(columns, rows)


def _kernels(costs: dict[str, Any]) -> list[tuple[str, str, str, int, str]]:
    """What layers of codes were multiplied with."""
    return [
        (name, label, kernel, layers, cost["machine"]["instructions"])
        for name, cost in costs.items()
        for label in ("int8", "int4")
        for kernel, layers in cost.get("machine", {}).get(label, {}).items()
    ]


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['low']:.4f} – {figure['high']:.4f}"
