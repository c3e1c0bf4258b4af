"""What `laconic export` made, in lines and a table."""

from typing import Any

from laconic.report.points import MEGABYTE
from laconic.report.tables import Column, Table


def lines_of(outcome: dict[str, Any]) -> tuple[str, ...]:
    """Where it is, how large, and how near to the model in torch."""
    found = outcome["agreement"]
    return (
        f"{outcome['output']}/{outcome['file']} for {outcome['library']}: {outcome['bytes'] / MEGABYTE:.2f} MB "
        f"({outcome['stored_bytes'] / MEGABYTE:.2f} MB as laconic stores it), made in {outcome['seconds']:.1f} s",
        f"Inputs: {', '.join(outcome['inputs'])}; outputs: {', '.join(outcome['outputs'])}; any batch and length",
        f"Agrees with torch on {found['rows']} rows in {found['batches']} batches: off by {found['error']:.1e} of the "
        f"largest output at most",
    )


def table_of(outcome: dict[str, Any]) -> Table:
    """Layers of codes by what they are in the file."""
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
