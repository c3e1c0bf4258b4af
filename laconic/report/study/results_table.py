"""Records as rows of one table: a row for each cell, a column for each thing that any of them was asked or measured.

Columns of a task are called `TASK METRIC`, followed by `low` and `high` (the 95 % interval over the rows judged), by
`change` (against the original), by its `p`, by `least p` (the smallest that these rows can give), and by `detectable`
(the smallest change that they show); those of cost are told in `costs`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.evaluate.paired import least_p_of
from laconic.report.study.costs import Shape, cost_columns, cost_row, passes_of, writings_of
from laconic.report.tables import Value

Record = Mapping[str, Any]
Row = Mapping[str, Value]

DONE = "done"
MODEL, SEED = "model", "seed"
ORDER = (MODEL, "task", "recipe", "method", "targets", "allocate", "keep", "then", SEED)
"""Of the axes in tables; parameters of methods stand before `then`."""
FIXED = ("key", "state", "baseline", "family", "bytes", "dense_bytes", "file_bytes", "kept", "parameters",
         "memory_bytes", "kl", "kl_low", "kl_high", "top1_agreement", "cosine", "seconds", "compress_seconds",
         "evaluate_seconds", "statistics", "workers", "output", "finished", "error_kind", "error")  # fmt: skip
FIDELITY = ("kl", "kl_low", "kl_high", "top1_agreement", "cosine")


@dataclass(frozen=True)
class Results:
    """The rows of a study.

    axes:     names of the columns that are axes, by the name of the axis.
    measures: (task, metric) of every figure of quality, in the order of their first appearance.
    passes:   (batch, length) of every forward pass that was timed.
    writings: (batch, prompt) of every prompt after which models wrote.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    axes: Mapping[str, str]
    measures: tuple[tuple[str, str], ...]
    passes: tuple[Shape, ...]
    writings: tuple[Shape, ...]

    def kind(self, column: str) -> type[str] | type[int] | type[float] | type[bool]:
        """What the values of a column are; text where they are of several kinds."""
        kinds = {type(row[column]) for row in self.rows if row.get(column) is not None}
        if kinds == {bool}:
            return bool
        if kinds == {int}:
            return int
        return float if kinds and kinds <= {int, float} else str

    def values(self, column: str) -> list[Value]:
        """What occurs in a column, each once, in the order of its first appearance; None is no value."""
        return list(dict.fromkeys(row[column] for row in self.rows if row.get(column) is not None))

    @property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row["state"] == DONE]


def ordered(records: Sequence[Record]) -> list[Record]:
    """Originals first, then along the axes: the order of a report is the same however the records came."""
    names = _ordered(records)

    def place(record: Record) -> tuple[Any, ...]:
        values = [record["axes"].get(name) for name in names]
        # Nothing stands before numbers, and these before texts.
        along = [(value is not None, isinstance(value, str), 0 if value is None else value) for value in values]
        return not record.get("baseline"), *along, str(record["key"])

    return sorted(records, key=place)


def results_table(records: Sequence[Record]) -> Results:
    """The rows of `records`, in order; what a cell does not have is None."""
    records = ordered(records)
    if not any(MODEL in record["axes"] for record in records):
        records = [_with_model(record) for record in records]
    axes = {name: f"axis {name}" if name in FIXED else name for name in _ordered(records)}
    raw = [{**_facts(record), **_axes(record, axes), **_measured(record), **cost_row(record)} for record in records]
    measures = tuple(dict.fromkeys(measure for record in records for measure in _measures(record)))
    columns = tuple(_columns(axes.values(), measures, cost_columns(records)))
    rows = tuple({column: row.get(column) for column in columns} for row in raw)
    return Results(columns, rows, axes, measures, passes_of(records), writings_of(records))


def measure_name(task: str, metric: str) -> str:
    """The column of a figure of quality."""
    return f"{task} {metric}"


def _with_model(record: Record) -> Record:
    """Where recipes say what is compressed, the last part of its name: cells of two models are never of one group."""
    model = (record.get("recipe") or {}).get(MODEL)
    return {**record, "axes": {MODEL: model and str(model).rstrip("/").rpartition("/")[2], **record["axes"]}}


def _ordered(records: Sequence[Record]) -> list[str]:
    names = list(dict.fromkeys(name for record in records for name in record["axes"]))
    # A parameter of a method comes after `keep`, whose kin it is.
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


def _facts(record: Record) -> dict[str, Value]:
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


def _measured(record: Record) -> dict[str, Value]:
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
    """As it was recorded; of older records, which have none, that of all their rows."""
    if task not in (evaluation.get("difference") or {}):
        return None
    rows = (evaluation.get("settings") or {}).get(task, {}).get("rows")
    recorded = (evaluation.get("least_p") or {}).get(task, {}).get(metric)
    return least_p_of(rows) if recorded is None and isinstance(rows, int) else recorded


def _measures(record: Record) -> list[tuple[str, str]]:
    results = (record.get("evaluation") or {}).get("results") or {}
    return [(task, metric) for task, metrics in results.items() for metric in metrics]
