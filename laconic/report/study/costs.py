"""What cells cost as columns: forward passes and writing, in the order of a pass's batch and length.

Those of a forward pass are called `latency BATCHxLENGTH` (median seconds), followed by `lower` and `upper` (quartiles),
`peak_bytes`, and `joules` where the machine counts them. Those of models that write are `prefill BATCHxPROMPT` and
`decode BATCHxPROMPT`, in tokens a second of all rows together, each followed by `seconds`: until the first new token,
and of each further one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from laconic.report.tables import Value

Shape = tuple[int, int]
"""Rows of a batch, and tokens of each."""


def passes_of(records: Sequence[Mapping[str, Any]]) -> tuple[Shape, ...]:
    """Every forward pass that was timed."""
    return tuple(sorted({(one["batch"], one["length"]) for record in records for one in _latencies(record)}))


def writings_of(records: Sequence[Mapping[str, Any]]) -> tuple[Shape, ...]:
    """Every prompt after which models wrote."""
    return tuple(sorted({(one["batch"], one["prompt"]) for record in records for one in _generations(record)}))


def pass_name(batch: int, length: int) -> str:
    """The column of the median seconds of a forward pass."""
    return f"latency {batch}x{length}"


def prefill_name(batch: int, prompt: int) -> str:
    """The column of the tokens a second in which a prompt is read."""
    return f"prefill {batch}x{prompt}"


def decode_name(batch: int, prompt: int) -> str:
    """The column of the tokens a second that are written."""
    return f"decode {batch}x{prompt}"


def joules_name(batch: int, length: int) -> str:
    """The column of the energy of a forward pass."""
    return f"{pass_name(batch, length)} joules"


def cost_columns(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The names of those columns that any of the records has."""
    counted = any("joules" in one for record in records for one in _latencies(record))
    for shape in passes_of(records):
        name = pass_name(*shape)
        yield from (name, f"{name} lower", f"{name} upper", f"{name} peak_bytes")
        if counted:
            yield joules_name(*shape)
    for shape in writings_of(records):
        for name in (prefill_name(*shape), decode_name(*shape)):
            yield from (name, f"{name} seconds")


def cost_row(record: Mapping[str, Any]) -> dict[str, Value]:
    """What a record has in them."""
    row: dict[str, Value] = {}
    for one in _latencies(record):
        name = pass_name(one["batch"], one["length"])
        row |= {name: one["median"], f"{name} lower": one.get("lower_quartile")}
        row |= {f"{name} upper": one.get("upper_quartile"), f"{name} peak_bytes": one.get("peak_bytes")}
        row[joules_name(one["batch"], one["length"])] = one.get("joules")
    for one in _generations(record):
        prefill, decode = (name(one["batch"], one["prompt"]) for name in (prefill_name, decode_name))
        row |= {prefill: one["prefill_tokens_per_second"], f"{prefill} seconds": one["prefill"]["median"]}
        row |= {decode: one["decode_tokens_per_second"], f"{decode} seconds": one["step"]["median"]}
    return row


def _latencies(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(_cost(record).get("latency") or [])


def _generations(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(_cost(record).get("generation") or [])


def _cost(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return (record.get("evaluation") or {}).get("cost") or {}
