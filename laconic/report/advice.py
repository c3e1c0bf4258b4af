"""The table and the lines of `laconic advise`: the measured ways to store a model, and the fastest of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from laconic.report.tables import MEGABYTE, Column, Table

UNCERTAINTY = 1.05
"""Two times that differ by less than this factor count as equal."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The cost of a model that is stored in one way.

    Args:
        label: the way; the original has a name too.
        options: options of `laconic compress` that store a model in this way; None for the original.
        bytes: bytes of the weights on disk.
        memory_bytes: bytes of memory, as the runtime measures them; None if it does not.
        reading: tokens that are read in a second: those of a prompt, or of a pass if the model writes no text.
        writing: tokens that are written in a second; None if that was not measured.
        refusal: the reason why the model cannot be stored or run in this way; None if it can.
    """

    label: str
    options: str | None = None
    bytes: int | None = None
    memory_bytes: int | None = None
    reading: float | None = None
    writing: float | None = None
    refusal: str | None = None

    @classmethod
    def of(cls, label: str, options: str | None, cost: dict[str, Any]) -> "Measured":
        """The figures in the JSON of a cost.

        Args:
            label: the way.
            options: options of `laconic compress`; None for the original.
            cost: `cost` of `laconic evaluate --json`, measured with one batch and one length.
        """
        written = next(iter(cost.get("generation", ())), None)
        if written is None:
            reading, writing = cost["latency"][0]["throughput"], None
        else:
            reading, writing = written["prefill_tokens_per_second"], written.get("decode_tokens_per_second")
        return cls(
            label=label,
            options=options,
            bytes=cost["bytes"],
            memory_bytes=cost["memory_bytes"],
            reading=reading,
            writing=writing,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields that have a value."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def advice_table(ways: Sequence[Measured]) -> Table:
    """Bytes and speeds, beside those of the original, which is the first.

    Args:
        ways: the original and the other ways.
    """
    original, measured = ways[0], [way for way in ways if way.refusal is None]
    columns = [
        (Column("stored as"), lambda way: way.label),
        (Column("file MB", "{:.1f}", 1 / MEGABYTE), lambda way: way.bytes),
        (Column("memory MB", "{:.0f}", 1 / MEGABYTE), lambda way: way.memory_bytes),
        (Column("reads, tokens/s", "{:.0f}"), lambda way: way.reading),
        (Column("times", "{:.2f}×"), lambda way: _times(way.reading, original.reading)),
    ]
    if any(way.writing is not None for way in measured):
        columns += [
            (Column("writes, tokens/s", "{:.1f}"), lambda way: way.writing),
            (Column("times", "{:.2f}×"), lambda way: _times(way.writing, original.writing)),
        ]
    return Table.of(measured, *columns)


def advice_lines(ways: Sequence[Measured]) -> list[str]:
    """The fastest ways to read and to write text, the smallest file, and the ways that are refused.

    Args:
        ways: the original, and the other ways.

    Example:
        >>> original = Measured(label="as it is", bytes=400, reading=100.0)
        >>> codes = Measured(label="4 bits", options="--method gptq", bytes=100, reading=90.0)
        >>> for line in advice_lines([original, codes]):
        ...     print(line)
        Reading: nothing is faster than the model as it is.
        Smallest: 4 bits, 0.25 of the bytes (--method gptq).
    """
    original, measured = ways[0], [way for way in ways if way.refusal is None]
    lines = [_fastest(name, measured, original) for name in ("reading", "writing") if getattr(original, name)]
    smallest = min(measured, key=lambda way: way.bytes or 0)
    if smallest is not original and original.bytes:
        share = (smallest.bytes or 0) / original.bytes
        lines.append(f"Smallest: {smallest.label}, {share:.2f} of the bytes ({smallest.options}).")
    return lines + [f"Not {way.label}: {way.refusal}" for way in ways if way.refusal is not None]


def _fastest(name: str, measured: Sequence[Measured], original: Measured) -> str:
    title = name.capitalize()
    fastest = max(measured, key=lambda way: getattr(way, name) or 0.0)
    times = _times(getattr(fastest, name), getattr(original, name))
    if fastest is original or times is None or times < UNCERTAINTY:
        return f"{title}: nothing is faster than the model as it is."
    return f"{title}: {fastest.label} is {times:.2f} times as fast as the model as it is ({fastest.options})."


def _times(speed: float | None, original: float | None) -> float | None:
    return None if not speed or not original else speed / original
