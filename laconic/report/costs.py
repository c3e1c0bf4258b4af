"""Tables of the cost of models: size, bytes by part, speed, kernels, and size against quality."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from laconic.report.tables import Column, Table

MEGABYTE = 1e6


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
    columns = (
        Column("method"),
        Column(kl, "{:.4f}"),
        Column(agreement, "{:.1%}"),
        Column("model MB", "{:.1f}"),
        Column("keep", "{:.2f}"),
        Column("matrices MB", "{:.1f}"),
        Column("ms per batch", "{:.0f}"),
        Column("speed-up", "{:.2f}×"),
    )
    rows = tuple(
        (
            point.method,
            point.kl,
            point.agreement,
            point.file_bytes / MEGABYTE,
            point.keep,
            point.nbytes / MEGABYTE,
            point.latency * 1e3,
            original.latency / point.latency,
        )
        for point in (original, *points)
    )
    return Table(columns, rows)


KERNEL_COLUMNS = (Column("model"), Column("bits"), Column("rows: kernel"), Column("layers"), Column("instructions"))


def cost_tables(costs: dict[str, Any]) -> dict[str, Table]:
    """Tables of size, bytes by part, speed of forward passes and of generation, and kernels.

    Args:
        costs: `Cost.to_json` of each model, by its name; all measured in the runtime of the first.

    Returns:
        The tables by title, in the order to show them.
    """
    first = next(iter(costs.values()))
    tables = {
        "Size": _size(costs),
        "Megabytes by part": _parts(costs),
        f"Speed of one forward pass{_runtime_note(first)}": _speed(costs),
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
    """Megabytes of the weights by part, in the stored dtype."""
    names = list(next(iter(costs.values()))["parts"])
    columns = (Column("model"), *(Column(name, "{:.2f}") for name in names))
    rows = tuple((name, *(cost["parts"][part] / MEGABYTE for part in names)) for name, cost in costs.items())
    return Table(columns, rows)


def _runtime_note(cost: dict[str, Any]) -> str:
    """The runtime, in parentheses; empty for torch."""
    runtime = cost["runtime"]
    if runtime["name"] == "eager":
        return ""
    size = f", {runtime['bytes'] / MEGABYTE:.2f} MB" if "bytes" in runtime else ""
    return f" ({runtime['name']}: {runtime['library']}{size})"


def _generation(costs: dict[str, Any]) -> Table:
    """Speed of generation; tokens per second are of all rows together, by the median."""
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
            f"{generation['batch']} × {generation['prompt']} + {generation['new']}",
            1e3 * generation["prefill"]["median"],
            generation["prefill_tokens_per_second"],
            1e3 * generation["step"]["median"],
            f"{1e3 * generation['step']['lower_quartile']:.2f} – {1e3 * generation['step']['upper_quartile']:.2f}",
            generation["decode_tokens_per_second"],
        )
        for name, cost in costs.items()
        for generation in cost.get("generation", [])
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
    """The kernels that quantized layers used, with the number of layers."""
    return [
        (name, label, kernel, layers, cost["machine"]["instructions"])
        for name, cost in costs.items()
        for label in ("int8", "int4")
        for kernel, layers in cost.get("machine", {}).get(label, {}).items()
    ]
