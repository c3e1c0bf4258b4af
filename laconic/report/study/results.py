"""Records of a study as one table: a row for each cell, a column for each axis, setting and measurement.

A task has the column `TASK METRIC`. It is followed by `low` and `high` (the 95 % interval over the rows), `change`
(against the original), `p`, `least p` (the smallest p-value that is possible with these rows), and `detectable` (the
smallest change that they can show). A forward pass has the column `latency BATCHxLENGTH` (median seconds), followed by
`lower` and `upper` (quartiles), `peak_bytes`, and `joules` if the machine measures energy. A model that generates text
has the columns `prefill BATCHxPROMPT` and `decode BATCHxPROMPT`, in tokens per second of all rows together. Each is
followed by `seconds`: until the first new token, or for each further token.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.evaluate.paired import min_attainable_p
from laconic.report.tables import Value

Shape = tuple[int, int]
"""Rows of a batch, and tokens of each."""


def forward_shapes(records: Sequence[Mapping[str, Any]]) -> tuple[Shape, ...]:
    """(batch, length) of every forward pass that was timed, sorted."""
    return tuple(
        sorted({(latency["batch"], latency["length"]) for record in records for latency in _latencies(record)})
    )


def generation_shapes(records: Sequence[Mapping[str, Any]]) -> tuple[Shape, ...]:
    """(batch, prompt) of every generation that was timed, sorted."""
    return tuple(
        sorted(
            {(generation["batch"], generation["prompt"]) for record in records for generation in _generations(record)}
        )
    )


def pass_name(batch: int, length: int) -> str:
    """The name of the column of the median seconds of a forward pass."""
    return f"latency {batch}x{length}"


def prefill_name(batch: int, prompt: int) -> str:
    """The name of the column of the tokens per second of reading a prompt."""
    return f"prefill {batch}x{prompt}"


def decode_name(batch: int, prompt: int) -> str:
    """The name of the column of the tokens per second of generation."""
    return f"decode {batch}x{prompt}"


def joules_name(batch: int, length: int) -> str:
    """The name of the column of the energy of a forward pass."""
    return f"{pass_name(batch, length)} joules"


def cost_columns(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The names of the columns of cost that any of the records has."""
    counted = any("joules" in latency for record in records for latency in _latencies(record))
    for shape in forward_shapes(records):
        name = pass_name(*shape)
        yield from (name, f"{name} lower", f"{name} upper", f"{name} peak_bytes")
        if counted:
            yield joules_name(*shape)
    for shape in generation_shapes(records):
        for name in (prefill_name(*shape), decode_name(*shape)):
            yield from (name, f"{name} seconds")


def cost_row(record: Mapping[str, Any]) -> dict[str, Value]:
    """The values of a record in the columns of cost."""
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


Record = Mapping[str, Any]
Row = Mapping[str, Value]

DONE = "done"
MODEL, SEED = "model", "seed"
ORDER = (MODEL, "task", "recipe", "method", "targets", "allocate", "keep", "then", SEED)
"""The order of axes in tables; parameters of methods stand before `then`."""
FIXED = ("key", "state", "baseline", "family", "bytes", "dense_bytes", "file_bytes", "kept", "parameters",
         "memory_bytes", "kl", "kl_low", "kl_high", "top1_agreement", "cosine", "seconds", "compress_seconds",
         "evaluate_seconds", "statistics", "workers", "output", "finished", "error_kind", "error")  # fmt: skip
FIDELITY = ("kl", "kl_low", "kl_high", "top1_agreement", "cosine")


@dataclass(frozen=True)
class Results:
    """The records of a study as a table.

    Args:
        columns: names of the columns.
        rows: the value of each column, for each cell of the study.
        axes: for each axis of the study, the name of its column.
        measures: (task, metric) of every measure of quality, in the order of their first appearance.
        passes: (batch, length) of every forward pass that was timed.
        writings: (batch, prompt) of every generation that was timed.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    axes: Mapping[str, str]
    measures: tuple[tuple[str, str], ...]
    passes: tuple[Shape, ...]
    writings: tuple[Shape, ...]

    def kind(self, column: str) -> type[str] | type[int] | type[float] | type[bool]:
        """The type of the values of a column; `str` where they have several types."""
        kinds = {type(row[column]) for row in self.rows if row.get(column) is not None}
        if kinds == {bool}:
            return bool
        if kinds == {int}:
            return int
        return float if kinds and kinds <= {int, float} else str

    def values(self, column: str) -> list[Value]:
        """The distinct values of a column without None, in the order of their first appearance."""
        return list(dict.fromkeys(row[column] for row in self.rows if row.get(column) is not None))

    @property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row["state"] == DONE]


def sort_records(records: Sequence[Record]) -> list[Record]:
    """The records, originals first, then by their axes: the order does not depend on when cells were finished."""
    names = _axis_names(records)

    def place(record: Record) -> tuple[Any, ...]:
        values = [record["axes"].get(name) for name in names]
        # None sorts before numbers, and numbers before text.
        along = [(value is not None, isinstance(value, str), 0 if value is None else value) for value in values]
        return not record.get("baseline"), *along, str(record["key"])

    return sorted(records, key=place)


def results_table(records: Sequence[Record]) -> Results:
    """The table of a study.

    Args:
        records: one for each cell.

    Returns:
        The table, with rows in the order of `sort_records`. A value that a cell does not have is None.
    """
    records = sort_records(records)
    if not any(MODEL in record["axes"] for record in records):
        records = [_add_model_axis(record) for record in records]
    axes = {name: f"axis {name}" if name in FIXED else name for name in _axis_names(records)}
    raw = [
        {**_cell_fields(record), **_axes(record, axes), **_measured_fields(record), **cost_row(record)}
        for record in records
    ]
    measures = tuple(dict.fromkeys(measure for record in records for measure in _measures(record)))
    columns = tuple(_columns(axes.values(), measures, cost_columns(records)))
    rows = tuple({column: row.get(column) for column in columns} for row in raw)
    return Results(columns, rows, axes, measures, forward_shapes(records), generation_shapes(records))


def measure_name(task: str, metric: str) -> str:
    """The name of the column of a measure of quality."""
    return f"{task} {metric}"


def _add_model_axis(record: Record) -> Record:
    """The record with an axis for its model, where the study has none because its recipes name the model."""
    model = (record.get("recipe") or {}).get(MODEL)
    return {**record, "axes": {MODEL: model and str(model).rstrip("/").rpartition("/")[2], **record["axes"]}}


def _axis_names(records: Sequence[Record]) -> list[str]:
    names = list(dict.fromkeys(name for record in records for name in record["axes"]))
    # Parameters of methods come after `keep`.
    places = {name: (ORDER.index(name) if name in ORDER else ORDER.index("keep") + 0.5) for name in names}
    return sorted(names, key=lambda name: places[name])


def _columns(axes: Iterable[str], measures: Iterable[tuple[str, str]], costs: Iterable[str]) -> Iterator[str]:
    yield from FIXED[:3]
    yield from axes
    yield from FIXED[3 : FIXED.index("seconds")]
    for measure in measures:
        name = measure_name(*measure)
        yield from (name, f"{name} low", f"{name} high", f"{name} change")
        yield from (f"{name} p", f"{name} least p", f"{name} detectable")
    yield from costs
    yield from FIXED[FIXED.index("seconds") :]


def _axes(record: Record, axes: Mapping[str, str]) -> dict[str, Value]:
    return {axes[name]: value for name, value in record["axes"].items()}


def _cell_fields(record: Record) -> dict[str, Value]:
    seconds, error = record.get("seconds") or {}, record.get("error") or {}
    taken = (
        "key",
        "state",
        "family",
        "bytes",
        "dense_bytes",
        "file_bytes",
        "statistics",
        "workers",
        "output",
        "finished",
    )
    left, dense = record.get("bytes"), record.get("dense_bytes")
    return {
        **{name: record.get(name) for name in taken},
        "baseline": bool(record.get("baseline")),
        "kept": None if left is None or not dense else left / dense,
        "seconds": seconds.get("total"),
        "compress_seconds": seconds.get("compress"),
        "evaluate_seconds": seconds.get("evaluate"),
        "error_kind": error.get("kind"),
        "error": error.get("sentence"),
    }


def _measured_fields(record: Record) -> dict[str, Value]:
    evaluation = record.get("evaluation") or {}
    cost, fidelity = evaluation.get("cost") or {}, evaluation.get("fidelity") or {}
    row: dict[str, Value] = {name: fidelity.get(name) for name in FIDELITY}
    row |= {"parameters": cost.get("parameters"), "memory_bytes": cost.get("memory_bytes")}
    for task, metric in _measures(record):
        name = measure_name(task, metric)
        found = evaluation["results"][task][metric]
        change = (evaluation.get("difference") or {}).get(task, {}).get(metric, {})
        row |= {name: found["value"], f"{name} low": found.get("low"), f"{name} high": found.get("high")}
        row |= {f"{name} change": change.get("value"), f"{name} p": change.get("p")}
        row[f"{name} least p"] = _least_p(evaluation, task, metric)
        row[f"{name} detectable"] = (evaluation.get("detectable") or {}).get(task, {}).get(metric)
    return row


def _least_p(evaluation: Mapping[str, Any], task: str, metric: str) -> float | None:
    """The smallest attainable p as recorded; for older records, without it, that of all rows."""
    if task not in (evaluation.get("difference") or {}):
        return None
    rows = (evaluation.get("settings") or {}).get(task, {}).get("rows")
    recorded = (evaluation.get("least_p") or {}).get(task, {}).get(metric)
    return min_attainable_p(rows) if recorded is None and isinstance(rows, int) else recorded


def _measures(record: Record) -> list[tuple[str, str]]:
    results = (record.get("evaluation") or {}).get("results") or {}
    return [(task, metric) for task, metrics in results.items() for metric in metrics]
