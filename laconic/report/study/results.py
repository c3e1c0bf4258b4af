"""Records of a study as one table: a row for each cell, a column for each axis, setting and measurement.

A task has the column `TASK METRIC`. It is followed by `low` and `high` (the 95 % interval over the rows), `change`
(against the original), `p`, `least p` (the smallest p-value that is possible with these rows), and `detectable` (the
smallest change that they can show). A forward pass has the column `latency BATCHxLENGTH` (median seconds), followed by
`lower` and `upper` (quartiles), `peak_bytes`, and `joules` if the machine measures energy. A model that generates text
has the columns `prefill BATCHxPROMPT` and `decode BATCHxPROMPT`, in tokens per second of all rows together. Each is
followed by `seconds`: until the first new token, or for each further token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.evaluate.paired import min_attainable_p
from laconic.report.tables import Value

Record = Mapping[str, Any]
ResultRow = Mapping[str, Value]
Shape = tuple[int, int]
"""Rows of a batch, and tokens of each."""

PASS_FIELDS = {"": "median", " lower": "lower_quartile", " upper": "upper_quartile", " peak_bytes": "peak_bytes"}
"""The fields of a timed forward pass in a record, by what follows the name of the pass in the name of a column."""


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


def _cost_fields(record: Record) -> dict[str, Value]:
    """The values of a record in the columns of cost."""
    row: dict[str, Value] = {}
    for latency in _timings(record, "latency"):
        shape = latency["batch"], latency["length"]
        row |= {f"{pass_name(*shape)}{suffix}": latency.get(field) for suffix, field in PASS_FIELDS.items()}
        row[joules_name(*shape)] = latency.get("joules")
    for generation in _timings(record, "generation"):
        prefill, decode = (name(generation["batch"], generation["prompt"]) for name in (prefill_name, decode_name))
        row |= {prefill: generation["prefill_tokens_per_second"], f"{prefill} seconds": generation["prefill"]["median"]}
        row |= {decode: generation["decode_tokens_per_second"], f"{decode} seconds": generation["step"]["median"]}
    return row


def _timings(record: Record, section: str) -> list[Mapping[str, Any]]:
    """The timings of a record: of forward passes (`latency`) or of generation."""
    return ((record.get("evaluation") or {}).get("cost") or {}).get(section) or []


def _shapes(records: Sequence[Record], section: str, tokens: str) -> tuple[Shape, ...]:
    """Batch and number of tokens of everything that was timed, sorted."""
    return tuple(
        sorted({(timing["batch"], timing[tokens]) for record in records for timing in _timings(record, section)})
    )


DONE = "done"
MODEL, SEED = "model", "seed"
AXIS_ORDER = (MODEL, "task", "recipe", "method", "targets", "allocate", "keep", "then", SEED)
"""The order of axes in tables; parameters of methods stand before `then`."""
CELL_COLUMNS = (
    "key", "state", "baseline", "family", "bytes", "dense_bytes", "file_bytes", "kept", "parameters", "memory_bytes",
    "kl", "kl_low", "kl_high", "top1_agreement", "cosine", "seconds", "compress_seconds", "evaluate_seconds",
    "statistics", "workers", "output", "finished", "error_kind", "error",
)  # fmt: skip
"""Columns that every study has."""
TIME_COLUMNS = CELL_COLUMNS.index("seconds")
"""The index of the first of these columns that stands behind the measurements."""
MEASURE_SUFFIXES = ("", " low", " high", " change", " p", " least p", " detectable")
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
        generations: (batch, prompt) of every generation that was timed.
    """

    columns: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    axes: Mapping[str, str]
    measures: tuple[tuple[str, str], ...]
    passes: tuple[Shape, ...]
    generations: tuple[Shape, ...]

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


def sort_records(records: Sequence[Record]) -> list[Record]:
    """The records, originals first, then by their axes: the order does not depend on when cells were finished."""
    names = _axis_names(records)

    def order(record: Record) -> tuple[Any, ...]:
        values = [record["axes"].get(name) for name in names]
        # None sorts before numbers, and numbers before text.
        keys = [(value is not None, isinstance(value, str), 0 if value is None else value) for value in values]
        return not record.get("baseline"), *keys, str(record["key"])

    return sorted(records, key=order)


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
    axes = {name: f"axis {name}" if name in CELL_COLUMNS else name for name in _axis_names(records)}
    passes, generations = _shapes(records, "latency", "length"), _shapes(records, "generation", "prompt")
    metered = any("joules" in latency for record in records for latency in _timings(record, "latency"))
    measures = tuple(dict.fromkeys(measure for record in records for measure in _measures(record)))
    columns = (
        *CELL_COLUMNS[:3],
        *axes.values(),
        *CELL_COLUMNS[3:TIME_COLUMNS],
        *(f"{measure_name(*measure)}{suffix}" for measure in measures for suffix in MEASURE_SUFFIXES),
        *(f"{pass_name(*shape)}{suffix}" for shape in passes for suffix in (*PASS_FIELDS, *[" joules"] * metered)),
        *(
            f"{name(*shape)}{suffix}"
            for shape in generations
            for name in (prefill_name, decode_name)
            for suffix in ("", " seconds")
        ),
        *CELL_COLUMNS[TIME_COLUMNS:],
    )
    rows = []
    for record in records:
        settings = {axes[name]: value for name, value in record["axes"].items()}
        row = {**_cell_fields(record), **settings, **_measured_fields(record), **_cost_fields(record)}
        rows.append({column: row.get(column) for column in columns})
    return Results(columns, tuple(rows), axes, measures, passes, generations)


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
    return sorted(
        names, key=lambda name: AXIS_ORDER.index(name) if name in AXIS_ORDER else AXIS_ORDER.index("keep") + 0.5
    )


def _cell_fields(record: Record) -> dict[str, Value]:
    seconds, error = record.get("seconds") or {}, record.get("error") or {}
    nbytes, dense = record.get("bytes"), record.get("dense_bytes")
    return {
        **{name: record.get(name) for name in CELL_COLUMNS},
        "baseline": bool(record.get("baseline")),
        "kept": None if nbytes is None or not dense else nbytes / dense,
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
        figure = evaluation["results"][task][metric]
        change = (evaluation.get("difference") or {}).get(task, {}).get(metric, {})
        detectable = (evaluation.get("detectable") or {}).get(task, {}).get(metric)
        values = (figure["value"], figure.get("low"), figure.get("high"), change.get("value"), change.get("p"),
                  _least_p(evaluation, task, metric), detectable)  # fmt: skip
        row |= {
            f"{measure_name(task, metric)}{suffix}": value
            for suffix, value in zip(MEASURE_SUFFIXES, values, strict=True)
        }
    return row


def _least_p(evaluation: Mapping[str, Any], task: str, metric: str) -> float | None:
    """The recorded smallest attainable p-value; for older records without it, the one for the number of rows."""
    if task not in (evaluation.get("difference") or {}):
        return None
    rows = (evaluation.get("settings") or {}).get(task, {}).get("rows")
    recorded = (evaluation.get("least_p") or {}).get(task, {}).get(metric)
    return min_attainable_p(rows) if recorded is None and isinstance(rows, int) else recorded


def _measures(record: Record) -> list[tuple[str, str]]:
    results = (record.get("evaluation") or {}).get("results") or {}
    return [(task, metric) for task, metrics in results.items() for metric in metrics]
