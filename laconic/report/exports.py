"""Lines and a table about an exported model, made from the JSON of `laconic export`."""

from pathlib import Path
from typing import Any

from laconic.report.tables import MEGABYTE, Column, Table


def export_lines(outcome: dict[str, Any]) -> tuple[str, ...]:
    """Lines about an exported model: its file, its size, its inputs, and its difference from torch.

    Args:
        outcome: the JSON of `laconic export`.
    """
    agreement = outcome["agreement"]
    if outcome["runtime"] == "gguf":
        return _gguf_lines(outcome)
    return (
        _size_line(outcome, outcome["library"]),
        f"Inputs: {', '.join(outcome['inputs'])}; outputs: {', '.join(outcome['outputs'])}; any batch and length",
        f"Agrees with torch on {agreement['rows']} rows in {agreement['batches']} batches: the largest difference is "
        f"{agreement['error']:.1e} of the largest output",
        *(
            ()
            if outcome["scale_rounding"] is None
            else (f"Rounding changes the scales of a matrix by at most {outcome['scale_rounding']:.1e} of their norm",)
        ),
        *outcome["remarks"],
    )


def _size_line(outcome: dict[str, Any], engine: str) -> str:
    """The file, what reads it, its size, and the seconds that it took."""
    output, file = outcome["output"], outcome["file"]
    path = output if Path(output).suffix == Path(file).suffix else f"{output}/{file}"
    return (
        f"{path} for {engine}: {outcome['bytes'] / MEGABYTE:.2f} MB "
        f"({outcome['stored_bytes'] / MEGABYTE:.2f} MB as stored by laconic), exported in {outcome['seconds']:.1f} s"
    )


def _gguf_lines(outcome: dict[str, Any]) -> tuple[str, ...]:
    """Lines about a GGUF file."""
    rows, error = outcome["agreement"]["rows"], outcome["agreement"]["error"]
    decoded = [layers for label, layers in outcome["layers"].items() if label.startswith("decoded")]
    extra = sum(layers["bytes"] - layers["stored_bytes"] for layers in decoded)
    return (
        _size_line(outcome, "llama.cpp"),
        f"The reader of {outcome['library']} finds the numbers of the model in it, bit for bit",
        *(
            [f"Read by transformers, its logits on {rows} rows differ from torch's by {error:.1e} of the largest"]
            if rows
            else []
        ),
        *(
            [
                f"{sum(layers['count'] for layers in decoded)} compressed layers have no blocks in llama.cpp and are "
                f"written decoded, which takes {extra / MEGABYTE:.2f} MB more"
            ]
            if decoded
            else []
        ),
    )


def export_table(outcome: dict[str, Any]) -> Table:
    """A table of quantized layers by the operator that replaced them in the exported file.

    Args:
        outcome: the JSON of `laconic export`.
    """
    return Table.of(
        outcome["layers"].items(),
        (Column("operator"), lambda row: row[0]),
        (Column("layers", "{:d}"), lambda row: row[1]["count"]),
        (Column("MB", "{:.2f}"), lambda row: row[1]["bytes"] / MEGABYTE),
        (Column("as stored, MB", "{:.2f}"), lambda row: row[1]["stored_bytes"] / MEGABYTE),
    )
