"""The results as files for others: CSV, Parquet, and a table for a paper. Each file appears whole or not at all."""

import csv
import io
import os
import secrets
from pathlib import Path

import pyarrow
from pyarrow import parquet

from laconic.errors import UserError
from laconic.report.study.results_table import Results
from laconic.report.tables import Value

TYPES = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}


def put(path: Path, content: str | bytes) -> None:
    """Write a file in place of whatever was there; its folder is made.

    Raises:
        UserError: the disk is full, or refuses.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"The report's file '{path}' cannot be written: {error.strerror or error}; name a folder that can."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def as_csv(results: Results) -> str:
    """One line for each cell; what was not measured is empty, numbers are written in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(results.columns)
    for row in results.rows:
        writer.writerow(["" if row[name] is None else _spelled(row[name]) for name in results.columns])
    return text.getvalue()


def as_arrow(results: Results) -> pyarrow.Table:
    """The same columns, typed; one of several kinds of values is text."""
    columns = {}
    for name in results.columns:
        kind = results.kind(name)
        values = [_typed(row[name], kind) for row in results.rows]
        columns[name] = pyarrow.array(values, TYPES[kind])
    return pyarrow.table(columns)


def as_parquet(results: Results) -> bytes:
    """A file's content."""
    sink = io.BytesIO()
    parquet.write_table(as_arrow(results), sink)
    return sink.getvalue()


def _typed(value: Value, kind: type) -> Value:
    if value is None or kind is bool:
        return value
    return _spelled(value) if kind is str else kind(value)


def _spelled(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
