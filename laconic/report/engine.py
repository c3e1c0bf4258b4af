"""The table of what models cost in an engine, made from the JSON of `laconic evaluate`."""

from typing import Any

from laconic.report.tables import MEGABYTE, Column, Table


def engine_tables(costs: dict[str, Any]) -> dict[str, Table]:
    """A table of size, memory and speed, a row for each model and length of a prompt.

    Args:
        costs: `EngineCost.to_json` of each model, by its name; all of the same engine.

    Returns:
        The table by its title.
    """
    first = next(iter(costs.values()))
    threads = first["machine"]["threads"]
    title = f"Size and speed in {first['runtime']['library']} ({threads} thread{'s' if threads > 1 else ''})"
    table = Table.of(
        [(name, cost, timing) for name, cost in costs.items() for timing in cost["generation"]],
        (Column("model"), lambda row: row[0]),
        (Column("file MB", "{:.2f}"), lambda row: row[1]["bytes"] / MEGABYTE),
        (Column("memory MB", "{:.2f}", 1 / MEGABYTE), lambda row: row[1]["memory_bytes"]),
        (Column("prompt + new"), lambda row: "{prompt} + {new}".format(**row[2])),
        (Column("first token ms", "{:.1f}"), lambda row: 1e3 * row[2]["prefill"]["median"]),
        (Column("prefill tokens/s", "{:,.0f}"), lambda row: row[2]["prefill_tokens_per_second"]),
        (Column("ms a token", "{:.2f}", 1e3), lambda row: row[2]["step"] and row[2]["step"]["median"]),
        (Column("decode tokens/s", "{:,.1f}"), lambda row: row[2]["decode_tokens_per_second"]),
    )
    return {title: table}
