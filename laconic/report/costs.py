"""What models cost as tables: size, bytes by part, speed of reading and of writing, and the kernels that ran."""

from typing import Any

from laconic.report.points import MEGABYTE
from laconic.report.tables import Column, Table

KERNEL_COLUMNS = (Column("model"), Column("codes"), Column("rows: kernel"), Column("layers"), Column("instructions"))


def cost_tables(costs: dict[str, Any]) -> dict[str, Table]:
    """By title, in the order to show them; `costs` are the JSON of each model's cost, by what to call the model.

    All were measured in the runtime of the first.
    """
    first = next(iter(costs.values()))
    tables = {
        "Size": _size(costs),
        "Megabytes by part": _parts(costs),
        f"Speed of one forward pass{_ran_by(first)}": _speed(costs),
    }
    if any("generation" in cost for cost in costs.values()):
        tables["Speed of writing"] = _generation(costs)
    if kernels := _kernels(costs):
        tables["Kernels that were fastest here"] = Table(KERNEL_COLUMNS, tuple(kernels))
    return tables


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
